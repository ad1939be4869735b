"""Front ends, stacks and heads of families that name them in their own way, by real classes of transformers."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
from models import shapes, shapes_of, transformers

from speechft_merge.layouts.alignment import align
from speechft_merge.layouts.front_end import find_front_ends
from speechft_merge.layouts.naming import read_naming
from speechft_merge.layouts.structure import Location, locate

if TYPE_CHECKING:
    from collections.abc import Iterable

Shapes = dict[str, tuple[int, ...]]

MATRIX, KERNEL, BIAS = (8, 8), (8, 8, 3), (8,)

_BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_CNN = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
_SEW = _BLOCKS | _CNN | {"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}
_HALVES = {
    f"{half}_{size}": value
    for half in ("encoder", "decoder")
    for size, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 64}.items()
}
_S2T = _HALVES | {"d_model": 32, "vocab_size": 60, "conv_channels": 16, "input_feat_per_channel": 8}
_T5 = _HALVES | _CNN | {"hidden_size": 32, "vocab_size": 60}
_MOONSHINE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 60,
    **{f"{half}_num_{what}": 2 for half in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")},
}
_SEAMLESS = {
    "hidden_size": 32,
    "vocab_size": 60,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 64,
    **_HALVES,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Hubert": _BLOCKS | _CNN,
    "SEW": _SEW,
    "SEWD": _SEW | {"position_buckets": 8, "max_position_embeddings": 16},
    "Speech2Text": _S2T,
    "SpeechT5": _T5,
    "Moonshine": _MOONSHINE,
    "AST": _BLOCKS | {"max_length": 64, "num_mel_bins": 16},
    "ParakeetEncoder": _BLOCKS | {"subsampling_conv_channels": 16, "num_mel_bins": 16},
    "SeamlessM4T": _SEAMLESS,
    "Encodec": {},
    "Mimi": {"num_hidden_layers": 2},
}
NAMES = {"ParakeetEncoder": "ParakeetEncoder", "SeamlessM4T": "SeamlessM4TForSpeechToText"}


@functools.cache
def names_of(family: str, kind: str = "Model") -> Shapes:
    import torch

    library = transformers()
    with torch.device("meta"):
        config = getattr(library, f"{family}Config")(**CONFIGS[family])
        return shapes_of(getattr(library, NAMES.get(family, family + kind))(config).state_dict())


def part(names: Shapes, part: str) -> set[str]:
    """Modules of the tensors of one part, numbers as `*`."""
    found = read_naming(names).under()
    return {
        re.sub(r"(?<=\.)\d+(?=\.|$)", "*", own.rpartition(".")[0]) for own in names if found[own].location.part == part
    }


SEANET = ("conv", "block.*.conv")
MOONSHINES = {f"encoder.{name}" for name in ("conv1", "conv2", "conv3", "groupnorm")}
CONVOLUTIONS = {"feature_extractor.conv_layers.*.conv", "feature_extractor.conv_layers.*.layer_norm"}


@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [
        ("Hubert", "ForCTC", {f"hubert.{name}" for name in CONVOLUTIONS}),
        ("SEW", "Model", CONVOLUTIONS),
        ("SEWD", "ForCTC", {f"sew_d.{name}" for name in CONVOLUTIONS}),
        ("Speech2Text", "ForConditionalGeneration", {"model.encoder.conv.conv_layers.*"}),
        ("SpeechT5", "ForSpeechToText", {f"speecht5.encoder.prenet.{name}" for name in CONVOLUTIONS}),
        ("Moonshine", "Model", MOONSHINES),
        ("Moonshine", "ForConditionalGeneration", {f"model.{name}" for name in MOONSHINES}),
        ("AST", "Model", {"embeddings.patch_embeddings.projection"}),
        ("ParakeetEncoder", "", {"subsampling.layers.*", "subsampling.linear"}),
        ("Encodec", "Model", set()),
        ("Mimi", "Model", {f"encoder.encoder_seanet.layers.*.{name}" for name in SEANET}),
        ("SeamlessM4T", "", set()),
    ],
)
def test_a_front_end_is_whole(family: str, kind: str, expected: set[str]) -> None:
    wanted = {name.replace("feature_extractor", "feature_encoder") for name in expected}
    assert part(names_of(family, kind), "cnn") == (wanted if family == "SpeechT5" else expected)


@pytest.mark.parametrize(
    ("family", "kind", "projection", "position"),
    [
        ("SEW", "Model", {"layer_norm", "feature_projection"}, "encoder.pos_conv_embed.conv"),
        (
            "SpeechT5",
            "ForSpeechToText",
            {f"speecht5.encoder.prenet.feature_projection.{name}" for name in ("layer_norm", "projection")},
            "speecht5.encoder.prenet.pos_conv_embed.conv",
        ),
    ],
)
def test_projections_and_positions_are_found_where_they_stand(
    family: str, kind: str, projection: set[str], position: str
) -> None:
    names = names_of(family, kind)
    assert part(names, "projection") == projection
    assert all(module.startswith(position) for module in part(names, "pos_conv"))
    assert {own.location.stack for name, own in read_naming(names).under().items() if name.startswith(position)} == {
        "encoder"
    }


@pytest.mark.parametrize("prefix", ["", "net.", "audio.tower."])
def test_a_front_end_of_unknown_words_is_found_by_its_kernels(prefix: str) -> None:
    names: Shapes = {f"{prefix}encoder.layers.{i}.{name}.weight": MATRIX for i in range(2) for name in ("q", "k")}
    front = {
        f"{prefix}encoder.{name}": shape
        for name, shape in {
            "embed.conv.0.weight": (8, 1, 3, 3),
            "embed.out.0.weight": MATRIX,
            "stem1.weight": KERNEL,
            "stem1.bias": BIAS,
            "bn1.running_mean": BIAS,
        }.items()
    }
    beside = {f"{prefix}encoder.{name}": BIAS for name in ("norm.weight", "token", "after_norm.bias")}
    head = {f"{prefix}head.weight": KERNEL}
    found = locate(names | front | beside | head)
    assert {name for name, location in found.items() if location.part == "cnn"} == {*front}


def test_a_module_with_parameters_of_its_own_is_more_than_a_front_end() -> None:
    names = {
        "embeddings.cls_token": (1, 1, 8),
        "embeddings.patches.weight": (8, 1, 4, 4),
        "embeddings.patches.bias": BIAS,
    }
    assert find_front_ends(names, ["layers"], [""]) == {"embeddings.patches."}
    assert find_front_ends(names, ["encoder.layers", "decoder.layers"], ["encoder."]) == frozenset()


def test_whispers_convolutions_are_its_front_end() -> None:
    names = dict(shapes("Whisper", "Model"))
    found = locate(names)
    wanted = {f"encoder.conv{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
    assert {name for name, location in found.items() if location == Location("cnn", "encoder")} == wanted


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_what_stands_beside_the_blocks_of_an_encoder_alone_is_its_own(prefix: str) -> None:
    names = {f"{prefix}{name}": shape for name, shape in names_of("AST").items()}
    assert {location.stack for location in locate(names).values()} == {"encoder"}


# heads and what is none
def seen(names: Iterable[str], start: str) -> set[str]:
    return {name for name in names if name.startswith(start)}


@pytest.mark.parametrize("prefixes", [("", ""), ("net.", "net."), ("", "net.")])
def test_a_decoder_beside_a_known_prefix_is_no_head(prefixes: tuple[str, str]) -> None:
    """`speech_encoder` holds most of the names of this class, and the text decoder is not in it."""
    base, finetuned = ({p + name: shape for name, shape in names_of("SeamlessM4T").items()} for p in prefixes)
    found = align(read_naming(base), read_naming(finetuned))
    assert {*base} - {*found.pairs} == {f"{prefixes[0]}lm_head.weight"} == {*found.heads}


def encoder_decoder() -> Shapes:
    import torch

    library = transformers()
    speech = library.Wav2Vec2Config(**_BLOCKS, **_CNN)
    text = library.BartConfig(**_HALVES, d_model=32, vocab_size=60, max_position_embeddings=16)
    config = library.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(speech, text)
    with torch.device("meta"):
        return shapes_of(library.SpeechEncoderDecoderModel(config).state_dict())


def test_the_decoder_that_the_other_side_lacks_is_a_stack_and_no_head() -> None:
    both, alone = encoder_decoder(), dict(shapes("Wav2Vec2", "Model"))
    for base, finetuned in ((both, alone), (alone, both)):
        found = align(read_naming(base), read_naming(finetuned))
        names = found.base_names if base is both else found.finetuned_names
        assert len(found.pairs) == len(seen(both, "encoder."))
        decoder = {names[own].location for own in seen(both, "decoder.")}
        assert {location.stack for location in decoder} == {"decoder"}
        assert not any(names[own].inside for own in seen(both, "decoder."))
    assert len(align(read_naming(both), read_naming(both)).pairs) == len(both)


def test_a_head_beside_the_encoder_is_still_a_head() -> None:
    names = dict(shapes("Hubert", "ForCTC")) | {"pooler.layers.0.weight": MATRIX, "mlp.1.weight": MATRIX}
    found = read_naming(names).under()
    heads = {"lm_head.weight", "lm_head.bias", "pooler.layers.0.weight", "mlp.1.weight"}
    assert {own for own, name in found.items() if name.is_head} == heads


def test_a_second_encoder_beside_the_first_keeps_a_name_of_its_own() -> None:
    alone = dict(shapes("Hubert", "Model"))
    both = {f"{name}.{own}": shape for name in ("student", "teacher") for own, shape in alone.items()}
    names = read_naming(both).under("student.")
    assert not any(name.is_head for name in names.values())
    assert {names[own].location.stack for own in seen(both, "teacher.encoder.layers.")} == {"teacher.encoder"}


@pytest.mark.parametrize("family", ["Encodec", "Mimi"])
def test_the_codebooks_of_a_codec_are_no_head(family: str) -> None:
    names = names_of(family)
    codebooks = seen(names, "quantizer.")
    assert codebooks
    assert {read_naming(names).under()[own].location for own in codebooks} == {Location("other", "")}
    assert len(align(read_naming(names), read_naming(names)).pairs) == len(names)


@pytest.mark.parametrize("name", ["codevectors", "vars", "weight_proj.weight", "weight_proj.0.0.bias", "entries"])
def test_the_quantizer_of_pre_training_is_a_head(name: str) -> None:
    assert locate({f"quantizer.{name}": MATRIX})[f"quantizer.{name}"].is_head
