"""fairseq2's w2v-BERT meets transformers' own; its names are written out here as transformers' conversion has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from families import FAMILIES, build
from float64 import Tensors, differences, interpolate, moved
from options import UNSYNCED

from speechft_merge import Recipe, merge, open_merge
from speechft_merge.layouts.naming import read_naming
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from pathlib import Path

TO_FAIRSEQ2 = {
    r"^feature_projection\.projection": "encoder_frontend.model_dim_proj",
    r"^feature_projection\.layer_norm": "encoder_frontend.post_extract_layer_norm",
    r"^masked_spec_embed": "masker.temporal_mask_embed",
    r"(layers\.\d+)\.final_layer_norm": r"\1.layer_norm",
    r"conv_module\.layer_norm": "conv_layer_norm",
    r"conv_module\.depthwise_layer_norm": "conv.layer_norm",
    r"conv_module": "conv",
    r"intermediate_dense": "inner_proj",
    r"output_dense": "output_proj",
    r"linear_out": "output_proj",
    r"linear_([qkv])": r"\1_proj",
    r"distance_embedding": "sdpa.rel_k_embed",
}
"""transformers' name -> fairseq2's."""
HEADS = {
    "final_proj.weight": (8, 32),
    "final_target_proj.weight": (8, 8),
    "quantizer.entries": (1, 8, 4),
    "quantizer.entry_proj.weight": (8, 8),
}


def fairseq2_name(name: str) -> str:
    for pattern, theirs in TO_FAIRSEQ2.items():
        name = re.sub(pattern, theirs, name)
    return name


@pytest.fixture
def model() -> Any:
    return build(next(family for family in FAMILIES if family.bare == "Wav2Vec2BertModel"), "Wav2Vec2BertModel")


def save(weights: Tensors, path: Path) -> Tensors:
    """As `conformer_shaw.pt` holds a model, with the heads of its pre-training."""
    theirs = {fairseq2_name(name): tensor for name, tensor in weights.items()}
    theirs |= {name: torch.randn(shape) for name, shape in HEADS.items()}
    torch.save({"model": theirs}, path)
    return theirs


@pytest.mark.parametrize("inner", ["", "inner."])
def test_every_name_has_its_counterpart(inner: str, model: Any) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {fairseq2_name(name).replace("encoder.layers", f"encoder.{inner}layers"): s for name, s in own.items()}
    naming = read_naming(shapes)
    assert naming.layout == "fairseq2"
    assert dict(zip(naming.full.values(), shapes.values(), strict=True)) == own


@pytest.mark.parametrize("keep_head", [False, True])
def test_either_is_merged_with_the_other(keep_head: bool, model: Any, tmp_path: Path) -> None:
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = moved(base)
    model.save_pretrained(tmp_path / "base")
    theirs = save(tuned, tmp_path / "tuned.pt")
    recipe = Recipe(keep_head=keep_head, layer_alpha=(parse_rule("0=0.25"),))
    merge(str(tmp_path / "base"), str(tmp_path / "tuned.pt"), tmp_path / "out", recipe, options=UNSYNCED)
    wanted = interpolate(base, tuned)
    if keep_head:
        found = torch.load(tmp_path / "out/merged_model.pt")["model"]
        heads = {name: theirs[name].double() for name in HEADS}
        assert differences(found, {fairseq2_name(name): tensor for name, tensor in wanted.items()} | heads) == {}
    else:
        found = type(model).from_pretrained(tmp_path / "out").state_dict()
        assert differences(found, wanted) == {}


def test_nothing_is_left_to_be_said_of_a_file_of_fairseq2_as_the_base(model: Any, tmp_path: Path) -> None:
    base = dict(model.state_dict())
    save(base, tmp_path / "base.pt")
    model.load_state_dict(moved(base))
    model.save_pretrained(tmp_path / "tuned")
    with open_merge(str(tmp_path / "base.pt"), str(tmp_path / "tuned")) as opened:
        assert opened.findings == ()
        assert {tensor.name for tensor in opened.plan.tensors if tensor.alpha is None} == {*HEADS}
