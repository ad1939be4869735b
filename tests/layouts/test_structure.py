"""Where in the model each tensor stands: parts by their names, stacks and blocks by the structure of the names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from models import CLASSES, backbone, shapes, shapes_of, transformers

from speechft_merge.layouts.heads import is_head
from speechft_merge.layouts.naming import read_naming
from speechft_merge.layouts.structure import Location, find_stacks, is_decoder, locate
from speechft_merge.layouts.weight_norm import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILIES = list(CLASSES)
Shapes = dict[str, tuple[int, ...]]


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("feature_extractor.conv_layers.0.conv.weight", Location("cnn", "")),
        ("feature_projection.projection.weight", Location("projection", "")),
        ("encoder.pos_conv_embed.conv.weight_g", Location("pos_conv", "encoder")),
        ("encoder.layer_norm.weight", Location("final_norm", "encoder")),
        ("decoder.layer_norm.weight", Location("final_norm", "decoder")),
        ("encoder.layers.1.layer_norm.weight", Location("layers", "encoder", 1)),
        ("encoder.layers.10.attention.k_proj.weight", Location("layers", "encoder", 10)),
        ("decoder.layers.3.fc1.weight", Location("layers", "decoder", 3)),
        ("layers.7.fc1.weight", Location("layers", "encoder", 7)),
        ("encoder.embed_positions.weight", Location("other", "encoder")),
        ("decoder.embed_tokens.weight", Location("other", "decoder")),
        ("masked_spec_embed", Location("other", "")),
        ("adapter.layers.0.residual_conv.weight", Location("other", "")),
    ],
)
def test_every_name_has_its_location(name: str, location: Location) -> None:
    assert locate({name: (4, 4)}) == {name: location}


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in CLASSES.items() for kind in kinds])
def test_no_tensor_of_a_backbone_is_a_head(family: str, kind: str) -> None:
    assert not [name for name in backbone(family, kind) if is_head(canonical(name))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_has_its_index(family: str) -> None:
    places = locate({canonical(name): shape for name, shape in shapes(family, "Model").items()}).values()
    assert {place.block for place in places if place.part == "layers"} == {0, 1}
    stacks = {"encoder", "decoder"} if family == "Whisper" else {"encoder"}
    assert {place.stack for place in places if place.part == "layers"} == stacks


# stacks
MATRIX, KERNEL, BIAS = (8, 8), (8, 8, 3), (8,)
LISTS = {
    "layers": "encoder",
    "h": "encoder",
    "transformer.layers": "encoder",
    "encoders": "encoder",
    "encoder.encoder.layer": "encoder",
    "encoder.encoders": "encoder",
    "encoder.inner.layers": "encoder",
    "encoder.blocks": "encoder",
    "decoders": "decoder",
    "decoder.blocks": "decoder",
    "text_decoder.layers": "text_decoder",
    "audio_tower.layers": "audio_tower",
    "net.encoder.layers": "encoder",
    "speech.mixers": "speech.mixers",
}


def blocks(path: str, count: int = 3, **tensors: tuple[int, ...]) -> Shapes:
    tensors = tensors or {"attention.weight": MATRIX, "fc.weight": MATRIX, "fc.bias": BIAS}
    return {f"{path}.{block}.{name}": shape for block in range(count) for name, shape in tensors.items()}


@pytest.mark.parametrize("path", LISTS)
def test_a_numbered_list_of_matrices_is_a_stack_whatever_its_name(path: str) -> None:
    found = locate(blocks(path, 12))
    assert set(found.values()) == {Location("layers", LISTS[path], block) for block in range(12)}
    assert found[f"{path}.10.fc.bias"].block == 10


@pytest.mark.parametrize(
    "path",
    ["feature_extractor.conv_layers", "encoder.pos_conv_embed.layers", "subsampling.convs", "adapter.layers", "tdnn"],
)
def test_a_list_of_convolutions_or_beside_the_encoder_is_no_stack(path: str) -> None:
    inner = {"fc1.weight": MATRIX, "fc2.weight": MATRIX} if path in ("adapter.layers", "tdnn") else {}
    names = blocks(path, **({"conv.weight": KERNEL, "conv.bias": BIAS} | inner))
    assert find_stacks(names | blocks("encoder.layers")) == {"encoder.layers": "encoder"}
    assert not any(location.block is not None for location in locate(names).values())


def test_a_list_of_single_matrices_is_no_stack() -> None:
    assert find_stacks(blocks("projection", **{"weight": MATRIX, "bias": BIAS})) == {}


def test_the_outermost_list_counts_the_blocks() -> None:
    names = blocks("encoder.layers", **{f"experts.{i}.fc{k}.weight": MATRIX for i in range(4) for k in (1, 2)})
    assert {location.block for location in locate(names).values()} == {0, 1, 2}


def test_stacks_side_by_side_have_names_of_their_own() -> None:
    paths = ["speech_encoder.encoder.layers", "text_encoder.layers", "text_decoder.layers", "encoder.layers"]
    paths += ["encoder.inner.layers", "encoder.adapters", "layers"]
    names: Shapes = {}
    for path in paths:
        names |= blocks(path)
    stacks = find_stacks(names)
    assert stacks["encoder.layers"] == "encoder"
    assert stacks["text_encoder.layers"] == "text_encoder"
    assert len(set(stacks.values())) == len(paths)
    assert {stack for stack in stacks.values() if is_decoder(stack)} == {"text_decoder"}


def test_what_stands_beside_the_blocks_of_a_stack_belongs_to_it() -> None:
    names = blocks("text_decoder.layers") | {"text_decoder.layer_norm.weight": BIAS, "text_decoder.embed": MATRIX}
    found = locate(names)
    assert found["text_decoder.layer_norm.weight"] == Location("final_norm", "text_decoder")
    assert found["text_decoder.embed"] == Location("other", "text_decoder")


@pytest.mark.parametrize("number", ["9" * 5000, "\u0663"])
def test_what_is_no_index_is_no_block(number: str) -> None:
    assert locate({f"encoder.layers.{number}.fc.weight": MATRIX}).popitem()[1] == Location("other", "encoder")


def stacks_of(model: type, config: type, **settings: object) -> Mapping[str, list[int]]:
    import torch

    with torch.device("meta"):
        return read_naming(shapes_of(model(config(**settings)).state_dict())).stacks


def test_the_layers_of_sew_d_are_an_encoder() -> None:
    library = transformers()
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    assert stacks_of(library.SEWDForCTC, library.SEWDConfig, vocab_size=12, **settings) == {"encoder": [0, 1]}
