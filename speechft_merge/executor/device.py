"""Chooses the device of the arithmetic, and says plainly where one cannot be used. Imports torch only for one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.errors import DeviceError, UsageError, amount, quote

if TYPE_CHECKING:
    import torch

AUTO, CPU = "auto", "cpu"

_CHOICES = "auto, cpu, cuda, cuda:N (the N-th GPU from 0) or mps"
_NAME = re.compile(r"auto|cpu|mps|cuda(:\d{1,4})?")


@dataclass(frozen=True, slots=True)
class Device:
    """Where a merge computes, and the reason for it."""

    name: str
    """`cpu`, or as torch names it."""
    reason: str

    @property
    def is_cpu(self) -> bool:
        """Whether numpy computes."""
        return self.name == CPU


def require_device_name(name: str) -> None:
    """Refuse what names no device, before torch is imported.

    Raises:
        UsageError: it does not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"device {quote(name)} is unknown", hint=f"use {_CHOICES}")


def choose_device(asked: str) -> Device:
    """Choose the device of a merge from files to files.

    Raises:
        DeviceError: the one that was asked for cannot be used.
    """
    if asked == AUTO:
        return Device(CPU, "from file to file a GPU waits for the disk, and costs two copies more")
    if asked != CPU:
        open_device(asked)
    return Device(asked, "as requested")


def open_device(name: str, *, float64: bool = False) -> torch.device:
    """Return a device of torch after using it once.

    Args:
        name: see `require_device_name`; `auto` is a CUDA GPU if there is one that can be used.
        float64: whether numbers of 64 bits are needed, which Apple's GPUs have not.

    Raises:
        DeviceError: it cannot be used.
    """
    import torch

    if name == AUTO:
        try:
            return open_device("cuda", float64=float64) if torch.cuda.is_available() else torch.device(CPU)
        except DeviceError:
            return torch.device(CPU)
    if float64:
        require_float64(name)
    missing = _why_missing(name)
    if missing:
        raise DeviceError(f"{name} cannot be used: {missing}", hint=_REMEDY)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except RuntimeError as error:
        raise unusable(name, error) from error
    return device


def _why_missing(name: str) -> str | None:
    """Return why there is no such device, where torch tells it before it fails."""
    import torch

    if name == "mps":
        return None if torch.backends.mps.is_available() else "torch finds no GPU of Apple's here"
    if not name.startswith("cuda"):
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built for the CPU alone"
    if not torch.cuda.is_available():
        return "torch finds no GPU, or no driver for it"
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    return None if number < count else f"torch finds {amount(count, 'GPU')}, numbered from 0"


def require_float64(name: str) -> None:
    """Refuse a device that has no numbers of 64 bits.

    Raises:
        DeviceError: it has none.
    """
    if name == "mps":
        raise DeviceError("Apple's GPUs (mps) have no numbers of 64 bits, which are needed here", hint=_REMEDY)


_REMEDY = "use --device cpu, which gives the same bytes"


def unusable(name: str, error: BaseException) -> DeviceError:
    """Return what to raise for an error of torch on a device."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return DeviceError(f"{name} has not enough free memory", found=_first_line(error), hint=_REMEDY)
    return DeviceError(f"{name} cannot be used: {_first_line(error)}", hint=_REMEDY)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
