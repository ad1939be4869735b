"""What config.json says is held against the tensors before anything is written: depth, width, vocabulary, labels."""

from __future__ import annotations

from typing import Any

import pytest
from models import CLASSES, build, shapes_of

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


WRONG: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "depth": ("Hubert", "Model", {"num_hidden_layers": 3}, "num_hidden_layers is 3, the encoder has 2 layers"),
    "depth of the decoder": ("Whisper", "ForConditionalGeneration", {"decoder_layers": 4}, "decoder_layers is 4"),
    "width": ("Hubert", "Model", {"hidden_size": 48}, "hidden_size is 48, encoder.layer_norm.weight has 32"),
    "vocabulary": ("Hubert", "ForCTC", {"vocab_size": 9}, "vocab_size is 9, lm_head.weight has 12"),
    "words": ("Whisper", "Model", {"vocab_size": 9}, "vocab_size is 9, decoder.embed_tokens.weight has 60"),
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
