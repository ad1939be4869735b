"""The labs' files: which dictionary is the encoder, and the configuration beside it, read without running anything."""

from __future__ import annotations

import argparse
import io
import pickle
from typing import Any

import pytest
import torch
from container_files import Open, assert_holds, saved
from lab_files import FILES, Choice, s3prl_base, s3prl_finetune
from lab_models import BASE, build_lab
from omegaconf import OmegaConf

from speechft_merge.checkpoints.labs import MAX_DEPTH, MAX_VALUES, plain
from speechft_merge.errors import CheckpointError

LAB = BASE["hubert"]
ORIGINS = {
    "S3PRL base": ("S3PRL base", "model_weight"),
    "S3PRL fine-tune": ("S3PRL fine-tune", "Upstream"),
    "fairseq with omegaconf": ("fairseq", "model"),
    "fairseq with tables": ("fairseq", "model"),
    "fairseq with argparse": ("fairseq", "model"),
    "fairseq CTC": ("fairseq", "model"),
    "WavLM": ("WavLM", "model"),
    "SPIN": ("Lightning", "state_dict"),
}


def weights() -> dict[str, torch.Tensor]:
    return build_lab(LAB).state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ORIGINS)
def test_a_labs_file_is_told_and_its_encoder_found(kind: str, legacy: bool, open_bytes: Open) -> None:
    whole = FILES[kind](LAB, weights())
    checkpoint = open_bytes(saved(whole, legacy=legacy))
    assert checkpoint.origin is not None
    assert (checkpoint.origin.lab, checkpoint.state_path) == ORIGINS[kind]
    assert_holds(checkpoint, whole[checkpoint.state_path])


@pytest.mark.parametrize("kind", [kind for kind in ORIGINS if kind not in ("SPIN", "S3PRL fine-tune")])
def test_the_models_configuration_is_read_as_plain_values(kind: str, open_bytes: Open) -> None:
    origin = open_bytes(saved(FILES[kind](LAB, weights()))).origin
    assert origin is not None
    assert LAB.settings.items() <= origin.model.items()
    if kind == "WavLM":
        assert origin.model["normalize"] is False
    else:
        assert (origin.model["_name"], origin.task["normalize"], origin.task["sample_rate"]) == ("hubert", True, 16000)


def test_what_an_s3prl_fine_tune_was_made_of_is_read_from_its_arguments(open_bytes: Open) -> None:
    origin = open_bytes(saved(s3prl_finetune(LAB, weights()))).origin
    assert origin is not None
    assert origin.model == {"_name": "hubert"}


def test_the_heads_of_s3prl_are_left_out_and_told(open_bytes: Open) -> None:
    others = open_bytes(saved(s3prl_finetune(LAB, weights()))).others
    assert others["Downstream"] == "2 tensors"
    assert others["Featurizer"] == "1 tensor"
    assert "argparse.Namespace" in others["Args"]


@pytest.mark.parametrize("upstream", [{}, {"Upstream": {}}, {"Upstream": None}])
def test_an_s3prl_file_without_an_encoder_says_that_it_was_frozen(upstream: dict[str, Any], open_bytes: Open) -> None:
    whole = s3prl_finetune(LAB, weights())
    del whole["Upstream"]
    with pytest.raises(CheckpointError, match=r"encoder was frozen.*--upstream_trainable"):
        open_bytes(saved(whole | upstream))


@pytest.mark.parametrize(
    "root",
    [
        {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1.0)},
        {"model": {"a": torch.ones(2)}, "cfg": {"train": {"lr": 1.0}}},
        {"state_dict": {"a": torch.ones(2)}, "epoch": 1},
        {"Downstream": {"a": torch.ones(2)}},
        {"a": torch.ones(2)},
    ],
)
def test_other_files_are_nobodys(root: dict[str, Any], open_bytes: Open) -> None:
    assert open_bytes(saved(root)).origin is None


# plain values
def read(value: object, open_bytes: Open) -> dict[str, Any]:
    """`value` as the configuration of an S3PRL base."""
    whole = s3prl_base(LAB, {"a": torch.ones(1)}) | {"model_cfg": value}
    origin = open_bytes(saved(whole)).origin
    assert origin is not None
    return origin.model


VALUES: dict[str, Any] = {"a": 1, "b": [1, 2.5, "x"], "c": {"d": None, "e": True}}


def test_values_are_the_same_whoever_kept_them(open_bytes: Open) -> None:
    for kept in (VALUES, OmegaConf.create(VALUES), argparse.Namespace(**VALUES)):
        assert read(kept, open_bytes) == VALUES


def test_members_of_enumerations_are_their_values(open_bytes: Open) -> None:
    assert read({"a": Choice.static}, open_bytes) == {"a": "static"}


def test_what_is_missing_is_none_and_what_is_no_value_too(open_bytes: Open) -> None:
    held = OmegaConf.create({"a": "???", "b": 1})
    assert read(held, open_bytes) == {"a": None, "b": 1}
    assert read({"a": torch.ones(2), "b": io.StringIO, "c": 1}, open_bytes) == {"a": None, "b": None, "c": 1}
    assert read([1, 2], open_bytes) == {}


def test_a_configuration_that_refers_to_itself_ends() -> None:
    value: dict[str, Any] = {"a": 1}
    value["self"] = value
    found = plain(value)
    for _ in range(MAX_DEPTH):
        assert found["a"] == 1
        found = found["self"]
    assert found["self"] is None


def test_a_configuration_of_shared_lists_does_not_grow_without_bound() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value] * 50
    assert len(pickle.dumps(plain({"a": value}))) < 40 * MAX_VALUES


@pytest.mark.parametrize("kind", ORIGINS)
def test_nothing_of_a_labs_file_is_executed(kind: str, open_bytes: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's unpickler would import omegaconf and argparse; the reader looks nothing up."""
    content = saved(FILES[kind](LAB, weights()))

    def refuse(*_: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert open_bytes(content).origin is not None
