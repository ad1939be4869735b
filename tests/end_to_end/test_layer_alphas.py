"""Each family has its layers where `--layer-alpha` says, and a language model beside an encoder is left alone."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from float64 import differences, moved
from layered import FAMILIES_BY_LAYERS, Layered, weights
from options import UNSYNCED
from safetensors.torch import save_file

from speechft_merge import Recipe, merge
from speechft_merge.plan.findings import Level
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from float64 import Tensors

    from speechft_merge.output.output import Merged

EACH = pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in FAMILIES_BY_LAYERS])
BESIDE_TEXT = pytest.mark.parametrize(
    "family", [pytest.param(family, id=family.name) for family in FAMILIES_BY_LAYERS if family.text]
)
RAMP = "0-1=0.1:0.5"


@pytest.fixture
def pair(family: Layered, tmp_path: Path) -> tuple[Tensors, Tensors]:
    """Weights of a base and of a fine-tune, saved as `base` and `tuned`."""
    family.save(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    base = weights(tmp_path / "base")
    tuned = moved(base)
    save_file(tuned, tmp_path / "tuned/model.safetensors", {"format": "pt"})
    return base, tuned


def wanted(family: Layered, pair: tuple[Tensors, Tensors], of_text: float = 0) -> Tensors:
    """What the rules of `RAMP`, `cnn=0` and the other stack's `=0.75` make of each tensor."""
    base, tuned = pair

    def alpha(name: str) -> float:
        if name.startswith(f"{family.blocks}."):
            return {"0": 0.1, "1": 0.5}[name.removeprefix(f"{family.blocks}.").partition(".")[0]]
        beginnings = {family.cnn: 0, family.text: of_text, family.heads: 0, family.its: 0.75}
        return next((alpha for beginning, alpha in beginnings.items() if name.startswith(beginning)), 0.25)

    def mixed(name: str) -> torch.Tensor:
        ours, theirs = base[name].double(), tuned[name].double()
        return ours + alpha(name) * (theirs - ours) if base[name].is_floating_point() else ours

    return {name: mixed(name) for name in base}


def merged(family: Layered, folder: Path, *rules: str, keep_head: bool = False) -> Merged:
    """Merge with the rules for blocks, front end and the other stack, and more."""
    rules = (RAMP, *(["cnn=0"] * bool(family.cnn)), *([f"{family.stack}=0.75"] * bool(family.stack)), *rules)
    recipe = Recipe(layer_alpha=tuple(map(parse_rule, rules)), keep_head=keep_head)
    return merge(str(folder / "base"), str(folder / "tuned"), folder / "out", recipe, options=UNSYNCED)


@EACH
def test_blocks_front_end_and_stacks_are_where_a_rule_looks_for_them(
    family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    merged(family, tmp_path)
    assert differences(weights(tmp_path / "out"), wanted(family, pair)) == {}


@EACH
def test_inspect_shows_how_to_address_the_blocks(
    family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path, run: Run
) -> None:
    shown = run("inspect", "base").out
    assert re.search(r"blocks of the \w+ +2: 0-1 in --layer-alpha", shown)
    if family.text:
        assert re.search(r"blocks of the language_model +\d: language_model\.0-\d in --layer-alpha, ", shown)


@BESIDE_TEXT
def test_a_language_model_beside_the_encoder_is_left_alone_and_a_note_says_so(
    family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    (note,) = merged(family, tmp_path).findings
    assert note.level is Level.NOTE
    assert note.text.startswith("the language model beside the encoder (")
    assert note.text.endswith(" stays the base's; --layer-alpha language_model=ALPHA mixes it")


@BESIDE_TEXT
def test_with_keep_head_it_is_the_fine_tunes(family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    (note,) = merged(family, tmp_path, keep_head=True).findings
    assert " stays the fine-tune's; " in note.text
    assert differences(weights(tmp_path / "out"), wanted(family, pair, of_text=1)) == {}


@BESIDE_TEXT
@pytest.mark.parametrize("keep_head", [False, True])
def test_a_rule_mixes_it_whatever_it_is_called(
    family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path, keep_head: bool
) -> None:
    assert merged(family, tmp_path, "language_model=0.25", keep_head=keep_head).findings == ()
    expected = wanted(family, pair, of_text=0.25)
    assert differences(weights(tmp_path / "out"), expected) == {}


@BESIDE_TEXT
def test_a_rule_for_layers_is_not_one_for_its(family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    merged(family, tmp_path, "layers=0.1", RAMP)
    assert differences(weights(tmp_path / "out"), wanted(family, pair)).keys() <= {
        name for name in pair[0] if name.startswith(family.its or "no other")
    }


@BESIDE_TEXT
@pytest.mark.parametrize("changed", ["lacks it", "has another vocabulary", "has one block more"])
def test_a_fine_tune_whose_language_model_is_another_is_merged(
    family: Layered, pair: tuple[Tensors, Tensors], tmp_path: Path, changed: str
) -> None:
    base, tuned = pair
    (first,) = (name for name in tuned if name.endswith("layers.0.mlp.up_proj.weight"))
    if changed == "lacks it":
        tuned = {name: tensor for name, tensor in tuned.items() if not name.startswith(family.text)}
    elif changed == "has one block more":
        tuned[first.replace("layers.0", "layers.9")] = tuned[first].clone()
    else:
        (words,) = (name for name in tuned if name.endswith("embed_tokens.weight"))
        tuned[words] = torch.randn(70, 32)
    save_file(tuned, tmp_path / "tuned/model.safetensors", {"format": "pt"})
    (note,) = merged(family, tmp_path).findings
    assert "language model" in note.text
    there = {
        name: tuned[name] if name in tuned and tuned[name].shape == base[name].shape else base[name] for name in base
    }
    assert differences(weights(tmp_path / "out"), wanted(family, (base, there))) == {}
