"""Prefixes with numbers: an encoder in an nn.Sequential or a ModuleList is found; its own blocks are no prefixes."""

from __future__ import annotations

import time

import pytest
import torch
from models import build, shapes, shapes_of

from speechft_merge.layouts.alignment import Alignment, align
from speechft_merge.layouts.naming import read_naming
from speechft_merge.layouts.prefixes import candidate_prefixes, encoder_prefix

Shapes = dict[str, tuple[int, ...]]

NUMBERED = [
    "0.",
    "12.",
    "0.model.",
    "encoders.0.",
    "modules.wav2vec2.0.model.",
    "upstreams.0.net.1.",
    "layers_of_all.3.",
]
BASE = dict(shapes("Wav2Vec2", "Model"))
HEAD: Shapes = {"2.weight": (4, 64)}


def matched(base: Shapes, finetuned: Shapes) -> Alignment:
    return align(read_naming(base), read_naming(finetuned))


def with_prefix(prefix: str) -> Shapes:
    return {prefix + name: shape for name, shape in BASE.items()}


@pytest.mark.parametrize("prefix", NUMBERED)
def test_an_encoder_under_a_number_is_matched_whole(prefix: str) -> None:
    theirs = with_prefix(prefix) | HEAD
    found = matched(BASE, theirs)
    assert found.pairs == {name: prefix + name for name in BASE}
    assert found.finetuned_names["2.weight"].is_head
    assert matched(theirs, BASE).pairs == {prefix + name: name for name in BASE}
    assert matched(theirs, with_prefix("model.wav2vec2.")).base_prefix == prefix


@pytest.mark.parametrize("prefix", NUMBERED)
def test_a_number_before_the_encoder_is_seen_in_one_model_alone(prefix: str) -> None:
    found = read_naming(with_prefix(prefix) | HEAD)
    assert found.prefix == prefix
    assert found.stacks == {"encoder": [0, 1]}
    assert matched(with_prefix(prefix) | HEAD, with_prefix(prefix) | HEAD).heads == {"2.weight": "2.weight"}


def test_a_sequence_that_torch_made_is_matched() -> None:
    model = torch.nn.Sequential(build("Wav2Vec2"), torch.nn.Linear(32, 4))
    assert len(matched(BASE, shapes_of(model.state_dict())).pairs) == len(BASE)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("path", ["encoder.layers", "layers", "encoder.encoders", "blocks", "h", "model.encoder.layer"])
def test_a_block_is_no_prefix(path: str, blocks: int) -> None:
    names: Shapes = {
        f"{path}.{block}.{name}.weight": (8, 8)
        for block in range(blocks)
        for name in ("attention.q", "mlp.0", "mlp.2", "experts.0.fc")
    }
    assert not [prefix for prefix in candidate_prefixes(names) if "0" in prefix]
    assert not any(word.isdigit() for word in encoder_prefix(names).split("."))


def test_two_encoders_in_a_list_are_both_tried() -> None:
    names = with_prefix("encoders.0.") | with_prefix("encoders.1.")
    assert {"encoders.0.", "encoders.1."} <= {*candidate_prefixes(names)}


def test_a_deep_model_and_hostile_names_cost_little() -> None:
    deep: Shapes = {f"0.encoder.layers.{i}.fc{j}.weight": (8, 8) for i in range(48) for j in range(20)}
    hostile: Shapes = {"a." * 100_000 + "b": (1,), "0." * 100_000 + "b": (1,), "x" * 300_000: (1,)}
    start = time.process_time()
    assert set(candidate_prefixes(deep)) == {"", "0.", "0.encoder.", "0.encoder.layers."}
    assert len(candidate_prefixes(hostile)) < 100
    read_naming(hostile).under()
    assert time.process_time() - start < 1
