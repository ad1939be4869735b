"""Devices: which is used, what is said of one that cannot be, and the same files whatever computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from speechft_merge import MergeOptions, ProbeRequest
from speechft_merge.errors import DeviceError, UsageError
from speechft_merge.executor import executor
from speechft_merge.executor.device import choose_device, open_device, require_float64

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair, Run, Snapshot


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "meta", "cuda:1:2", "cuda\n"])
def test_what_names_no_device_is_a_usage_error_with_the_choices(name: str, run: Run, pair: Pair) -> None:
    for kind in (MergeOptions, ProbeRequest):
        with pytest.raises(UsageError, match="use auto, cpu, cuda, cuda:N"):
            kind(device=name)
    refused = run(*pair.args, "--device", name)
    assert refused.code == 2


def test_auto_merges_files_on_the_cpu_and_says_why(run: Run, pair: Pair) -> None:
    assert choose_device("auto").is_cpu
    planned = run(*pair.args, "--dry-run", "--json").json
    assert planned["device"] == "cpu"
    assert "waits for the disk" in planned["device_reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps"])
def test_a_device_that_is_not_there_ends_before_anything_is_written(
    name: str, run: Run, pair: Pair, tmp_path: Path
) -> None:
    refused = run(*pair.args, "-o", "out", "--device", name)
    assert refused.code == 1
    assert f"{name} cannot be used" in refused.err
    assert "--device cpu" in refused.err
    assert not (tmp_path / "out").exists()


def test_auto_falls_back_where_a_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA driver version is insufficient")

    for name in ("is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "zeros", broken)
    assert open_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="driver version"):
        open_device("cuda")


def test_numbers_of_64_bits_are_refused_where_there_are_none() -> None:
    require_float64("cuda")
    with pytest.raises(DeviceError, match="no numbers of 64 bits"):
        require_float64("mps")


@pytest.mark.parametrize("recipe", [(), ("--alpha", "0.7"), ("--dtype", "bfloat16"), ("--dtype", "float16")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_merge_through_torch_writes_the_same_files(
    dtype: torch.dtype, recipe: tuple[str, ...], run: Run, tmp_path: Path, snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without a GPU the same class runs on the CPU."""
    torch.manual_seed(0)
    weights = torch.randn(300, 500, dtype=torch.float64)
    for side, values in (("base", weights), ("finetuned", weights + 0.01 * torch.randn(300, 500))):
        (tmp_path / side).mkdir()
        tensors = {"encoder.layers.0.weight": values.to(dtype)}
        save_file(tensors, tmp_path / side / "model.safetensors", metadata={"format": "pt"})
    inputs = (tmp_path / "base", tmp_path / "finetuned", *recipe)
    assert run(*inputs, "-o", "numpy").code == 0
    used: list[str] = []

    def opened(name: str, **_: bool) -> torch.device:
        used.append(name)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    monkeypatch.setattr(executor, "open_device", opened)
    monkeypatch.setattr("speechft_merge.executor.device.open_device", opened)
    ran = run(*inputs, "-o", "torch", "--device", "cuda")
    assert ran.code == 0, ran.err
    assert set(used) == {"cuda"}
    left, right = snapshot(tmp_path / "numpy"), snapshot(tmp_path / "torch")
    assert left["model.safetensors"] == right["model.safetensors"]


def test_memory_that_runs_out_is_told_and_nothing_is_left(
    pair: Pair, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 MiB.\nmore")

    monkeypatch.setattr(executor, "open_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("speechft_merge.executor.device.open_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("speechft_merge.executor.device_buffers.DeviceBuffers._room", full)
    refused = run(*pair.args, "-o", "out", "--device", "cuda")
    assert refused.code == 1
    assert "has not enough free memory" in refused.err
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
