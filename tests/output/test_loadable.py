"""What config.json says is held against the tensors before anything is written: depth, width, vocabulary, labels."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from models import CLASSES, build, shapes_of, transformers

from speechft_merge.output.loadable import check_loadable
from speechft_merge.plan.findings import Level

KINDS = [(family, kind) for family, kinds in CLASSES.items() for kind in kinds]


def described(family: str, kind: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    model = build(family, kind)
    config = model.config.to_diff_dict() | {"architectures": [f"{family}{kind}"], "model_type": model.config.model_type}
    return config, shapes_of(model.state_dict())


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=map("".join, KINDS))
def test_nothing_is_found_of_what_transformers_wrote(family: str, kind: str) -> None:
    assert check_loadable(*described(family, kind), ()) == []


NEEDED = {family: {"vocab_size": 32} for family in ("wav2vec2-bert", "wav2vec2-conformer")}
MAPPINGS = ("CTC", "SPEECH_SEQ_2_SEQ", "AUDIO_CLASSIFICATION", "AUDIO_XVECTOR", "AUDIO_FRAME_CLASSIFICATION")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_nothing_is_found_of_any_class_for_speech_in_its_own_size(mapping: str) -> None:
    """Without memory for weights, and so in the sizes that are published: none is equal to another by chance."""
    classes = getattr(transformers(), f"MODEL_FOR_{mapping}_MAPPING")
    for settings, named in list(classes.items()):
        if settings.model_type == "moonshine_streaming":  # has no size of its own
            continue
        with torch.device("meta"):
            model = named(settings(**NEEDED.get(settings.model_type, {})))
        config = json.loads(model.config.to_json_string()) | {"architectures": [named.__name__]}
        found = check_loadable(config | {"model_type": settings.model_type}, shapes_of(model.state_dict()), ())
        assert (named.__name__, found) == (named.__name__, [])


def test_a_model_of_several_may_state_a_depth_anywhere() -> None:
    """The encoder may be any of them."""
    shapes = {f"encoder.layers.{i}.linear.weight": (4, 4) for i in range(3)}
    config = {"model_type": "x", "num_hidden_layers": 2, "is_encoder_decoder": True}
    assert check_loadable(config | {"codec_config": {"num_hidden_layers": 3}}, shapes, ()) == []
    assert len(check_loadable(config | {"codec_config": {"num_hidden_layers": 4}}, shapes, ())) == 1


WRONG: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "depth": ("Hubert", "Model", {"num_hidden_layers": 3}, "num_hidden_layers is 3, the encoder has 2 layers"),
    "depth of the decoder": ("Whisper", "ForConditionalGeneration", {"decoder_layers": 4}, "decoder_layers is 4"),
    "width": ("Hubert", "Model", {"hidden_size": 48}, "hidden_size is 48, encoder.layer_norm.weight has 32"),
    "vocabulary": ("Hubert", "ForCTC", {"vocab_size": 9}, "vocab_size is 9, lm_head.weight has 12"),
    "words": ("Whisper", "Model", {"vocab_size": 9}, "vocab_size is 9, decoder.embed_tokens.weight has 60"),
    "feed forward": ("Hubert", "Model", {"intermediate_size": 48}, "intermediate_size is 48"),
    "feed forward of the decoder": ("Whisper", "Model", {"decoder_ffn_dim": 48}, "decoder_ffn_dim is 48"),
    "a convolution": ("Hubert", "Model", {"conv_dim": [16] * 6 + [8]}, "conv_dim is 8"),
    "a convolution too many": ("Hubert", "Model", {"conv_dim": [16] * 6}, "conv_dim is 0"),
    "kernels": ("Hubert", "Model", {"conv_kernel": [10, 3, 3, 3, 3, 2, 4]}, "conv_kernel is 4"),
    "mel bins": ("Whisper", "Model", {"num_mel_bins": 80}, "num_mel_bins is 80"),
    "positions": ("Whisper", "Model", {"max_source_positions": 1500}, "max_source_positions is 1500"),
    "norms of the convolutions": ("Hubert", "Model", {"feat_extract_norm": "layer"}, "feat_extract_norm is 'layer'"),
    "biases of the convolutions": ("Hubert", "Model", {"conv_bias": True}, "conv_bias is True"),
    "an adapter": ("Wav2Vec2", "ForCTC", {"add_adapter": True}, "no tensors adapter.*"),
    "projection": ("Hubert", "ForSequenceClassification", {"classifier_proj_size": 8}, "classifier_proj_size is 8"),
    "labels": ("Hubert", "ForSequenceClassification", {"id2label": {"0": "a"}}, "it has 1 labels, the classifier 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_a_reason_to_refuse(what: str) -> None:
    family, kind, changed, told = WRONG[what]
    config, shapes = described(family, kind)
    (finding,) = check_loadable(config | changed, shapes, ())
    assert (finding.level, finding.allowed_by) == (Level.REFUSAL, "")
    assert told in finding.text


@pytest.mark.parametrize("prefix", ["0.", "model.", "student.", "net."])
def test_names_that_no_class_has_are_a_reason_to_refuse(prefix: str) -> None:
    config, shapes = described("Hubert", "Model")
    (finding,) = check_loadable(config, {prefix + name: shape for name, shape in shapes.items()}, ())
    assert f"names such as '{prefix}" in finding.text


def test_depth_is_also_read_in_the_encoders_own_config() -> None:
    shapes = {f"encoder.layers.{i}.linear.weight": (4, 4) for i in range(3)}
    for inner in ("encoder_config", "encoder"):
        assert check_loadable({"model_type": "x", inner: {"num_hidden_layers": 3}}, shapes, ()) == []
        (finding,) = check_loadable({"model_type": "x", inner: {"num_hidden_layers": 2}}, shapes, ())
        assert "num_hidden_layers is 2, the encoder has 3 layers" in finding.text


@pytest.mark.parametrize("family", ["Hubert", "Whisper"])
@pytest.mark.parametrize("block", [0, 1])
def test_a_block_that_lacks_what_another_has_is_a_reason_to_refuse(family: str, block: int) -> None:
    config, shapes = described(family, "Model")
    del shapes[f"encoder.layers.{block}.final_layer_norm.weight"]
    found = [finding.text for finding in check_loadable(config, shapes, ())]
    if block:  # what the first block alone has may be for all: WavLM's embedding of relative positions
        assert found == []
    else:
        assert ["block 0 of the encoder lacks 'final_layer_norm.weight'" in text for text in found] == [True]


HEADLESS = {"ForCTC": "lm_head", "ForSequenceClassification": "classifier", "ForPreTraining": "quantizer"}


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_class_whose_head_is_not_there_is_warned_of(kind: str) -> None:
    config, shapes = described("Wav2Vec2", kind)
    bare = {name: shape for name, shape in shapes.items() if not name.startswith(HEADLESS[kind])}
    (finding,) = check_loadable(config, bare, ())
    assert (finding.level, f"no weights of its head ({HEADLESS[kind]}.*)" in finding.text) == (Level.WARNING, True)


def test_other_sizes_of_speaker_verification_are_none_of_classification() -> None:
    model = build("WavLM", "ForXVector", tdnn_dim=(24, 16, 16, 16, 16), classifier_proj_size=40)
    config = model.config.to_dict() | {"architectures": ["WavLMForXVector"]}
    assert check_loadable(config, shapes_of(model.state_dict()), ()) == []


@pytest.mark.parametrize("own", [{"architectures": ["EmotionModel"]}, {"auto_map": {"AutoModel": "own.HubertX"}}])
def test_a_class_of_ones_own_may_have_names_of_its_own(own: dict[str, Any]) -> None:
    config, shapes = described("Hubert", "Model")
    prefixed = {f"model.{name}": shape for name, shape in shapes.items()}
    assert check_loadable(config | own, prefixed, ["own.py"]) == []


def test_a_decoder_that_is_missing_is_a_reason_to_refuse() -> None:
    config, shapes = described("Whisper", "ForConditionalGeneration")
    encoder = {name: shape for name, shape in shapes.items() if "decoder" not in name}
    (finding,) = check_loadable(config, encoder, ())
    assert "no weights of one" in finding.text


@pytest.mark.parametrize("value", [None, {"a": 1}, ["x"], 3, "\ud800", ""])
@pytest.mark.parametrize("key", ["model_type", "architectures", "id2label", "vocab_size", "auto_map", "hidden_size"])
def test_a_foreign_config_may_hold_anything(key: str, value: object) -> None:
    config, shapes = described("Hubert", "ForCTC")
    check_loadable(config | {key: value}, shapes, ())
