"""Checkpoints as Lightning writes them, by hand: a tree of which the model is one branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from float64 import Tensors, differences, interpolate, moved
from loaders import merged
from models import build, fine_tune
from options import UNSYNCED

from speechft_merge import merge

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(torch.nn.Module):
    """A LightningModule that holds an encoder and a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.encoder = build("WavLM", seed=seed)
        self.head = torch.nn.Linear(32, 5)


def checkpoint(module: Module) -> dict[str, Any]:
    """What `Trainer.save_checkpoint` writes."""
    optimizer = torch.optim.Adam(module.parameters())
    sum(parameter.sum() for parameter in module.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
        "callbacks": {},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4},
    }


class Merged(NamedTuple):
    """Two checkpoints and their merge."""

    base: dict[str, Any]
    tuned: dict[str, Any]
    whole: dict[str, Any]


@pytest.fixture
def two(tmp_path: Path) -> Merged:
    module = Module()
    base = checkpoint(module)
    module.load_state_dict(moved(base["state_dict"]))
    tuned = checkpoint(module)
    torch.save(base, tmp_path / "base.ckpt")
    torch.save(tuned, tmp_path / "tuned.ckpt")
    return Merged(base, tuned, torch.load(merged(tmp_path / "base.ckpt", tmp_path / "tuned.ckpt", tmp_path / "out")))


def encoder_of(weights: Tensors) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}


def test_a_checkpoint_of_lightning_is_written_back_as_one(two: Merged) -> None:
    assert two.whole.keys() == two.base.keys()
    assert two.whole["hyper_parameters"] == two.base["hyper_parameters"]
    found = Module(seed=9)
    found.load_state_dict(two.whole["state_dict"], strict=True)
    wanted = interpolate(two.base["state_dict"], two.tuned["state_dict"])
    assert differences(encoder_of(found.state_dict()), encoder_of(wanted)) == {}


def test_the_head_of_a_lightning_module_stays_the_bases(two: Merged) -> None:
    for name in ("head.weight", "head.bias"):
        assert torch.equal(two.whole["state_dict"][name], two.base["state_dict"][name])


def test_a_checkpoint_of_lightning_merges_into_a_folder(tmp_path: Path) -> None:
    base, module = build("WavLM"), Module()
    module.encoder = fine_tune(base, "WavLM", "Model")
    tuned = checkpoint(module)
    base.save_pretrained(tmp_path / "base")
    torch.save(tuned, tmp_path / "tuned.ckpt")
    merge(str(tmp_path / "base"), str(tmp_path / "tuned.ckpt"), tmp_path / "out", options=UNSYNCED)
    found = type(base).from_pretrained(tmp_path / "out").state_dict()
    theirs = {name.removeprefix("encoder."): tensor for name, tensor in encoder_of(tuned["state_dict"]).items()}
    assert differences(found, interpolate(base.state_dict(), theirs)) == {}
