"""Whether two files hold the same weights, told without reading all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, checkpoint_of
from safetensors.torch import save_file

from speechft_merge import open_checkpoint
from speechft_merge.record.identity import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


def weights(seed: int) -> Tensors:
    torch.manual_seed(seed)
    return {
        f"encoder.layers.{layer}.{name}": torch.randn(64, *rest) * 0.1
        for layer in range(3)
        for name, rest in (("fc.weight", (64,)), ("fc.bias", ()), ("norm.weight", ()))
    }


def print_of(path: Path) -> str:
    opened = open_checkpoint(str(path))
    try:
        return fingerprint(opened)
    finally:
        opened.close()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bin_file_has_the_fingerprint_of_the_same_weights_in_safetensors(legacy: bool, tmp_path: Path) -> None:
    state = dict(build("WavLM").state_dict())
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy)
    torch.save({"state_dict": state, "step": 3}, tmp_path / "a.ckpt")
    assert len({print_of(tmp_path / name) for name in ("a.safetensors", "a.bin", "a.ckpt")}) == 1


def test_shards_have_the_fingerprint_of_the_whole(tmp_path: Path) -> None:
    model = build("Hubert")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert print_of(tmp_path / "whole") == print_of(tmp_path / "shards")


def test_a_transposed_view_has_the_fingerprint_of_its_copy(tmp_path: Path) -> None:
    view = torch.randn(40, 50).T
    torch.save({"encoder.w": view}, tmp_path / "view.bin")
    torch.save({"encoder.w": view.contiguous()}, tmp_path / "copy.bin")
    assert print_of(tmp_path / "view.bin") == print_of(tmp_path / "copy.bin")


def optimizer_step(tensors: Tensors) -> Tensors:
    """One step of gradient descent on something that depends on every weight."""
    learned = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    loss = torch.stack([(tensor.double() ** 2).sum() for tensor in learned.values()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(learned.values(), lr=1e-4).step()
    return {name: tensor.detach() for name, tensor in learned.items()}


CHANGES: dict[str, Any] = {
    "one step": optimizer_step,
    "one tensor a little": lambda t: t | {"encoder.layers.1.fc.weight": t["encoder.layers.1.fc.weight"] * 1.001},
    "one bias": lambda t: t | {"encoder.layers.2.fc.bias": t["encoder.layers.2.fc.bias"] + 1e-3},
    "another type": lambda t: {name: tensor.half() for name, tensor in t.items()},
    "another shape": lambda t: {name: tensor.reshape(-1) for name, tensor in t.items()},
    "another name": lambda t: {f"hubert.{name}": tensor for name, tensor in t.items()},
    "a tensor more": lambda t: t | {"lm_head.weight": torch.zeros(2, 2)},
    "a tensor less": lambda t: dict(list(t.items())[1:]),
    "two tensors exchanged": lambda t: {
        name.replace("layers.0", "layers.x").replace("layers.1", "layers.0").replace("layers.x", "layers.1"): tensor
        for name, tensor in t.items()
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_tells_of_any_change_that_training_makes(change: str) -> None:
    before = weights(0)
    after = CHANGES[change](weights(0))
    assert fingerprint(checkpoint_of(before)) == fingerprint(checkpoint_of(weights(0)))
    assert fingerprint(checkpoint_of(before)) != fingerprint(checkpoint_of(after))


@settings(max_examples=25)
@given(order=st.permutations(list(weights(0))))
def test_the_order_in_the_file_does_not_matter(order: list[str]) -> None:
    tensors = weights(0)
    assert fingerprint(checkpoint_of({name: tensors[name] for name in order})) == fingerprint(checkpoint_of(tensors))
