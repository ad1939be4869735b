"""On a CUDA GPU: the bytes of the CPU, from files and in memory, in bounded memory. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from float64 import moved
from models import CLASSES, build
from safetensors.torch import load_file, save_file

from speechft_merge import LiveMerge, ProbeRequest, Recipe, compare, merge_state_dicts, open_merge
from speechft_merge.live import live_encoder
from speechft_merge.plan.plan import make_plan
from speechft_merge.similarity.models import ComparedModels

if TYPE_CHECKING:
    from conftest import Run, Snapshot

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here: not run on a GPU")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PAIR = Path(__file__).parents[2] / "examples/pair"


@pytest.mark.parametrize("alpha", ["0.25", "0.7", "-0.5", "1.5"])
@pytest.mark.parametrize("of_finetuned", FLOATS)
@pytest.mark.parametrize("of_base", FLOATS)
def test_files_have_the_bytes_of_the_cpu(
    of_base: torch.dtype, of_finetuned: torch.dtype, alpha: str, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    torch.manual_seed(0)
    weights = torch.randn(1000, 5003, dtype=torch.float64)  # some chunks, the last one odd
    near = weights + 0.01 * torch.randn_like(weights)
    for side, values in (("base", weights.to(of_base)), ("finetuned", near.to(of_finetuned))):
        (tmp_path / side).mkdir()
        save_file({"encoder.layers.0.weight": values}, tmp_path / side / "model.safetensors", metadata={"format": "pt"})
    for device in ("cpu", "cuda"):
        ran = run("base", "finetuned", "-o", device, "--alpha", alpha, "--extrapolate", "--device", device)
        assert ran.code == 0, ran.err
    cpu, cuda = snapshot(tmp_path / "cpu"), snapshot(tmp_path / "cuda")
    assert cpu["model.safetensors"] == cuda["model.safetensors"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_loaded_models_have_the_bytes_of_the_cpu_and_stay_on_the_gpu(dtype: torch.dtype, alpha: float) -> None:
    model = build("Hubert").to(dtype)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetuned = moved(base)
    expected = merge_state_dicts(base, finetuned, Recipe(alpha=alpha))
    there = [{name: tensor.cuda() for name, tensor in tensors.items()} for tensors in (base, finetuned)]
    merged = merge_state_dicts(there[0], there[1], Recipe(alpha=alpha))
    assert all(tensor.is_cuda for tensor in merged.values())
    LiveMerge(model.cuda(), *there).set(alpha)
    for found in (merged, model.state_dict()):
        assert all(torch.equal(found[name].cpu(), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("family", CLASSES)
def test_every_family_has_the_bytes_of_the_cpu(family: str) -> None:
    base = build(family).state_dict()
    finetuned = moved(base)
    expected = merge_state_dicts(base, finetuned)
    there = [{name: tensor.cuda() for name, tensor in tensors.items()} for tensors in (base, finetuned)]
    found = merge_state_dicts(there[0], there[1])
    assert all(torch.equal(found[name].cpu(), tensor) for name, tensor in expected.items())


def test_memory_on_the_gpu_does_not_grow_with_the_model(run: Run, tmp_path: Path) -> None:
    peaks = []
    for rows in (4_000, 40_000):
        base = {f"encoder.layers.{i}.weight": torch.randn(rows, 1000) for i in range(4)}
        for side, tensors in (("base", base), ("finetuned", moved(base))):
            (tmp_path / f"{side}{rows}").mkdir()
            save_file(tensors, tmp_path / f"{side}{rows}/model.safetensors", metadata={"format": "pt"})
        torch.cuda.reset_peak_memory_stats()
        assert run(f"base{rows}", f"finetuned{rows}", "-o", f"out{rows}", "--device", "cuda").code == 0
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] == peaks[1] < 500 << 20


def test_features_are_those_of_the_cpu() -> None:
    reports = [
        compare(PAIR / "base", PAIR / "finetuned", request=ProbeRequest(seconds=10, device=device))
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*(report.layers for report in reports), strict=True):
        assert one.to_json().keys() == other.to_json().keys()
    rows = [report.to_table() for report in reports]
    assert len(rows[0]) == len(rows[1])


def test_the_shipped_pair_is_merged_in_place() -> None:
    base = load_file(PAIR / "base/model.safetensors", device="cuda")
    merged = merge_state_dicts(base, load_file(PAIR / "finetuned/model.safetensors", device="cuda"))
    assert merged.keys() == base.keys()


@pytest.mark.parametrize("layer_alpha", [(), ("layers=0.1:0.9",)])
def test_a_live_encoder_has_the_numbers_of_the_cpu(layer_alpha: tuple[str, ...]) -> None:
    recipe = Recipe(alpha=0.3, layer_alpha=layer_alpha)
    found = {}
    with open_merge(PAIR / "base", PAIR / "finetuned", recipe) as opened:
        models = ComparedModels(opened.base, opened.finetuned, make_plan(opened.base, opened.finetuned, recipe))
        for device in ("cpu", "cuda"):
            live = live_encoder(models, torch.device(device))
            live.set(models.plan)
            found[device] = {name: tensor.cpu() for name, tensor in live.module.state_dict().items()}
    assert all(torch.equal(tensor, found["cuda"][name]) for name, tensor in found["cpu"].items())
