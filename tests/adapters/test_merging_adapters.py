"""Merges of adapters from end to end: what is read, what is written, and what a later run recognises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from float64 import differences, interpolate, moved
from lora_pairs import factors, save_adapter
from models import build, model_class
from options import UNSYNCED
from safetensors.torch import load_file, save_file

from speechft_merge import Recipe, merge, merge_state_dicts, open_merge, verify
from speechft_merge.errors import MismatchError, OutputError
from speechft_merge.options import MergeOptions

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Tensors, Tensors]:
    """Write `base` and `adapter`; the weights of the base, and those that the adapter makes of them."""
    model = build("Hubert")
    model.save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base/model.safetensors")
    added, whole = factors(base)
    save_adapter(tmp_path / "adapter", added)
    return base, whole


def written(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_the_base_and_the_adapter_are_read_once(
    alpha: float, pair: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechft_merge.sources.local import LocalFile

    read: list[int] = []
    plain = LocalFile.read_into

    def counted(self: LocalFile, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        plain(self, offset, buffer)

    with open_merge(tmp_path / "base", tmp_path / "adapter", Recipe(alpha=alpha), UNSYNCED) as opened:
        assert opened.identity  # samples the weights
        monkeypatch.setattr(LocalFile, "read_into", counted)
        opened.write(tmp_path / "out")
    sizes = [span.nbytes for model in (opened.base, opened.finetuned[0]) for span in model.held.values()]
    assert sum(span.nbytes for span in opened.base.tensors.values()) <= sum(read) <= sum(sizes)


def test_an_adapter_and_a_full_fine_tune_are_mixed(pair: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    base, whole = pair
    other = moved(base, 5)
    save_file(other, tmp_path / "other.safetensors")
    merge(
        str(tmp_path / "base"), [str(tmp_path / "adapter"), str(tmp_path / "other.safetensors")], tmp_path / "out",
        Recipe(alpha=0.4, weight=(3.0, 1.0)), options=UNSYNCED,
    )  # fmt: skip
    exact = {n: t.double() + 0.4 * (0.75 * (whole[n] - t) + 0.25 * (other[n] - t)) for n, t in base.items()}
    assert differences(written(tmp_path / "out"), exact) == {}


def test_an_adapter_is_never_the_base_that_was_given_last(pair: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    """A base may hold an optimizer's state, of its pre-training."""
    base, whole = pair
    state = {"state": {0: {"exp_avg": torch.ones(9)}}}
    torch.save({"model": base, "optimizer": state}, tmp_path / "base.pt")
    merge(str(tmp_path / "base.pt"), str(tmp_path / "adapter"), tmp_path / "out", options=UNSYNCED)
    found = torch.load(tmp_path / "out/merged_model.pt")
    assert differences(found["model"], interpolate(base, whole)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_type_is_rounded_once(dtype: torch.dtype, pair: object, tmp_path: Path) -> None:
    base = {name: tensor.to(dtype) for name, tensor in written(tmp_path / "base").items()}
    save_file(base, tmp_path / "base/model.safetensors")
    _, whole = factors(base)
    merge(str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "out", Recipe(alpha=1.0), options=UNSYNCED)
    found = written(tmp_path / "out")
    changed = [name for name in base if not torch.equal(whole[name].double(), base[name].double())]
    single = {name: whole[name].float() for name in changed}
    assert all(torch.equal(found[name], single[name].to(dtype)) for name in changed)


def test_any_number_of_workers_writes_the_same_bytes(
    pair: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechft_merge.executor.chunk.CHUNK", 1 << 12)
    made = set()
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        merge(
            str(tmp_path / "base"), str(tmp_path / "adapter"), out, options=MergeOptions(workers=workers, fsync=False)
        )
        made.add((out / "model.safetensors").read_bytes())
    monkeypatch.setattr("speechft_merge.executor.chunk.CHUNK", 1 << 15)
    merge(str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "large", options=UNSYNCED)
    assert made == {(tmp_path / "large/model.safetensors").read_bytes()}


def test_another_scale_is_another_merge(pair: object, tmp_path: Path) -> None:
    words = str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "out"
    merge(*words, options=UNSYNCED)
    assert merge(*words, options=UNSYNCED).already_done
    assert verify(tmp_path / "out").differences == ()
    for setting in ({"lora_alpha": 9}, {"fan_in_fan_out": True}):
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | setting
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(OutputError):
            merge(*words, options=UNSYNCED)
        with pytest.raises(MismatchError, match="as an adapter other settings"):
            verify(tmp_path / "out")


def test_the_head_that_an_adapter_was_trained_with_is_kept(pair: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    base, whole = pair
    head = {"lm_head.weight": torch.randn(12, 32), "lm_head.bias": torch.randn(12)}
    added = load_file(tmp_path / "adapter/adapter_model.safetensors")
    tuned = {name.replace("model.model.", "model.model.hubert."): tensor for name, tensor in added.items()}
    tuned |= {f"base_model.model.{name}": tensor for name, tensor in head.items()}
    save_adapter(tmp_path / "ctc", tuned)
    merge(str(tmp_path / "base"), str(tmp_path / "ctc"), tmp_path / "out", Recipe(keep_head=True), options=UNSYNCED)
    model, loading = model_class("Hubert", "ForCTC").from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    found: Any = model.state_dict()
    assert torch.equal(found["lm_head.weight"], head["lm_head.weight"])
    name = next(iter(added)).removeprefix("base_model.model.").replace("lora_A.weight", "weight")
    assert np.allclose(found[f"hubert.{name}"], interpolate(base, whole)[name].numpy(), atol=1e-7)


def test_loaded_models_with_lora_are_mixed_too(pair: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    base, whole = pair
    added = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for tuned in (added, base | {name.removeprefix("base_model.model."): tensor for name, tensor in added.items()}):
        found = merge_state_dicts(base, tuned, Recipe(lora_alpha=8.0))
        assert differences(found, interpolate(base, whole)) == {}
