"""What became of a merge: found by reading what stands at the output's place."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from rounding import Model
from safetensors import SafetensorError
from tools import ALPHA, weights

TOLD = re.compile(r"\b(warn|error|note:)", re.IGNORECASE)
TRACEBACK = "Traceback (most recent call last)"
SMALL = 1_000_000  # bytes of files that are no weights


@dataclass(frozen=True)
class Left:
    """What stands at the output's place."""

    weights: str  # in a few words; "" if there are none
    spare: int  # bytes of other files: temporary ones

    def __str__(self) -> str:
        beside = f" ({self.spare / 1e6:.0f} MB of temporary files)" if self.spare > SMALL else ""
        return (self.weights or "nothing left") + beside


@dataclass(frozen=True)
class Outcome:
    """How processes ended, and what they left."""

    codes: list[int]
    log: str
    left: Left
    executed: bool | None  # code out of a pickle; None if there was none
    again: tuple[int, Left] | None = None  # the exit code of the same command, run again, and what it left

    @property
    def ended(self) -> str:
        codes = " and ".join(map(str, dict.fromkeys(self.codes)))
        if min(self.codes) < 0:
            return "killed"
        if any(self.codes):
            return f"{'crash' if TRACEBACK in self.log else 'refused'}, {codes}"
        return f"{'told' if TOLD.search(self.log) else 'silent'}, exit {codes}"

    def __str__(self) -> str:
        parts = [self.ended]
        if self.left.weights or self.left.spare > SMALL or not self.ended.startswith(("crash", "refused")):
            parts.append(str(self.left))
        if self.executed is not None:
            parts.append("**code executed**" if self.executed else "code not executed")
        if self.again:
            parts.append("again: exit {}, {}".format(*self.again))
        return "; ".join(parts)


def left_at(output: Path, base: Path, finetuned: Path) -> Left:
    """What is at the output's place of a merge of two models."""
    files = weights(output)
    spare = sum(path.stat().st_size for path in output.rglob("*") if path.is_file() and path not in files)
    if not files:
        return Left("", spare)
    try:
        merged = Model(files)
    except (SafetensorError, OSError, EOFError):
        return Left("**broken file left**", spare)
    return Left(described(merged, Model(weights(base)), Model(weights(finetuned))), spare)


def described(merged: Model, base: Model, finetuned: Model) -> str:
    """How a merge that can be loaded relates to its inputs."""
    if missing := base.names - merged.names:
        return f"**{len(missing)} of {len(base.names)} tensors missing**"
    if not all(torch.isfinite(merged[name]).all() for name in merged.names):
        return "**NaN written**"
    theirs = {name.removeprefix("hubert."): name for name in finetuned.names}
    verdicts = {verdict(merged[name], base[name], finetuned[theirs[name]]) for name in base.names if name in theirs}
    if worst := verdicts - {"merged"}:
        return f"**{', '.join(sorted(worst))}**"
    if unused := {name for name in theirs if name not in merged.names}:
        return f"merged, {len(unused)} of the fine-tune's tensors left out"
    return "merged"


def verdict(merged: torch.Tensor, base: torch.Tensor, finetuned: torch.Tensor) -> str:
    """Whether a tensor is the interpolation."""
    if merged.shape != base.shape:
        return "another shape written"
    try:
        expected = (1 - ALPHA) * base.double() + ALPHA * finetuned.double()
    except RuntimeError:  # of shapes that cannot be mixed
        return "one tensor not merged"
    if expected.shape != merged.shape or not torch.allclose(merged.double(), expected, rtol=1e-5, atol=1e-7):
        return "other numbers written"
    return "merged" if finetuned.shape == base.shape else "broadcast"
