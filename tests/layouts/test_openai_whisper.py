"""openai-whisper's names against transformers': the same tensors, wherever they lie, in both directions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from models import build, shapes_of

from speechft_merge.layouts.alignment import align
from speechft_merge.layouts.naming import read_naming
from speechft_merge.recipe.rules import alphas_of, parse_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shapes = Mapping[str, tuple[int, ...]]

LINEAR, KEY = ("weight", "bias"), ("weight",)
ATTENTION = {"query": LINEAR, "key": KEY, "value": LINEAR, "out": LINEAR}
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def names_of(layers: int = 2) -> dict[str, str]:
    """Every name of whisper.model.Whisper -> that of transformers' WhisperModel, by convert_openai_to_hf.py."""
    named = {}
    for half, last, attentions in (
        ("encoder", "ln_post", {"attn": "self_attn"}),
        ("decoder", "ln", {"attn": "self_attn", "cross_attn": "encoder_attn"}),
    ):
        pairs = {"positional_embedding": "embed_positions.weight"}
        for block in range(layers):
            ours, theirs = f"blocks.{block}", f"layers.{block}"
            for attention, other in attentions.items():
                for projection, leaves in ATTENTION.items():
                    for leaf in leaves:
                        name = f"{theirs}.{other}.{PROJECTIONS[projection]}.{leaf}"
                        pairs[f"{ours}.{attention}.{projection}.{leaf}"] = name
                for leaf in LINEAR:
                    pairs[f"{ours}.{attention}_ln.{leaf}"] = f"{theirs}.{other}_layer_norm.{leaf}"
            for module, other in (("mlp.0", "fc1"), ("mlp.2", "fc2"), ("mlp_ln", "final_layer_norm")):
                for leaf in LINEAR:
                    pairs[f"{ours}.{module}.{leaf}"] = f"{theirs}.{other}.{leaf}"
        for leaf in LINEAR:
            pairs[f"{last}.{leaf}"] = f"layer_norm.{leaf}"
        named |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in pairs.items()}
    for convolution, leaf in itertools.product(("conv1", "conv2"), LINEAR):
        named[f"encoder.{convolution}.{leaf}"] = f"encoder.{convolution}.{leaf}"
    return named | {"decoder.token_embedding.weight": "decoder.embed_tokens.weight"}


NAMES = names_of()
FEED_FORWARD = {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128}  # of openai-whisper's width, four times its own
THEIRS = shapes_of(build("Whisper", "ForConditionalGeneration", **FEED_FORWARD).state_dict())
OURS: Shapes = {ours: THEIRS[f"model.{theirs}"] for ours, theirs in NAMES.items()}


def encoder_of(names: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in names.items() if name.startswith(prefix)}


def with_prefix(prefix: str, of: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in of.items()}


def test_the_names_are_those_of_the_package() -> None:
    model = pytest.importorskip("whisper.model")
    small = build("Whisper").config
    sizes = model.ModelDimensions(
        small.num_mel_bins, small.max_source_positions, 32, 2, 2, small.vocab_size, small.max_target_positions, 32, 2, 2
    )
    assert shapes_of(model.Whisper(sizes).state_dict()) == OURS


def test_the_names_are_those_of_transformers() -> None:
    assert {f"model.{theirs}" for theirs in NAMES.values()} == {*THEIRS} - {"proj_out.weight"}


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "net.whisper.", "0."])
def test_names_are_told_and_renamed_under_any_prefix(prefix: str) -> None:
    found = read_naming(with_prefix(prefix, OURS))
    assert found.layout == "openai-whisper"
    assert found.full == {prefix + ours: prefix.removeprefix("module.") + theirs for ours, theirs in NAMES.items()}
    assert found.stacks == {"encoder": [0, 1], "decoder": [0, 1]}


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "net.whisper.", "0."])
@pytest.mark.parametrize("swap", [False, True])
def test_every_tensor_finds_its_partner_in_the_other_scheme(prefix: str, swap: bool) -> None:
    wanted = {ours: f"{prefix}model.{theirs}" for ours, theirs in NAMES.items()}
    ours, theirs = read_naming(OURS), read_naming(with_prefix(prefix, THEIRS))
    found = align(theirs, ours) if swap else align(ours, theirs)
    assert found.pairs == ({b: a for a, b in wanted.items()} if swap else wanted)
    assert {name.canonical: name.location for name in found.base_names.values() if not name.is_head} == {
        name.canonical: name.location for name in found.finetuned_names.values() if not name.is_head
    }


@pytest.mark.parametrize("prefix", ["", "model.", "audio_encoder.", "encoder.encoders.", "model.encoder."])
@pytest.mark.parametrize("finetuned", ["openai", "transformers"])
@pytest.mark.parametrize("base", ["openai", "transformers"])
def test_an_encoder_alone_matches_a_whole_model_of_either_scheme(base: str, finetuned: str, prefix: str) -> None:
    whole = OURS if base == "openai" else THEIRS
    alone = encoder_of(OURS, "encoder.") if finetuned == "openai" else encoder_of(THEIRS, "model.encoder.")
    names = read_naming(with_prefix(prefix, alone) | {"head.weight": (3, 32)})
    found = align(read_naming(whole), names)
    encoder = {name for name in whole if name.startswith(("encoder.", "model.encoder."))}
    assert set(found.pairs) == encoder
    assert set(found.pairs.values()) == {prefix + name for name in alone}
    assert set(align(names, read_naming(whole)).pairs) == {prefix + name for name in alone}


def test_a_decoder_alone_is_told() -> None:
    found = read_naming(encoder_of(OURS, "decoder."))
    assert list(found.full.values()) == [
        name.removeprefix("decoder.") for name in NAMES.values() if name.startswith("decoder.")
    ]


@pytest.mark.parametrize(
    "rule", ["encoder=0", "decoder=0", "cnn=0", "0-1=0", "decoder.1=0", "encoder.layers.0.fc1.*=0"]
)
def test_rules_address_the_same_tensors_in_both_schemes(rule: str) -> None:
    chosen = []
    for names in (OURS, THEIRS):
        naming = read_naming(names)
        alphas = alphas_of(naming.under(), 0.5, (parse_rule(rule),))
        chosen.append({naming.under()[own].canonical for own, alpha in alphas.items() if not alpha})
    assert chosen[0] == chosen[1] != set()
