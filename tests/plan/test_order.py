"""Base and fine-tune in the wrong order are told by a head, or a trainer's traces, on the base's side only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from models import build, fine_tune
from plan_pairs import Tensors, findings, moved, prefixed, refusals

from speechft_merge import MergeOptions, merge
from speechft_merge.errors import MismatchError
from speechft_merge.plan.findings import ALLOW_UNRELATED

if TYPE_CHECKING:
    from pathlib import Path

HUBERT: Tensors = build("Hubert").state_dict()


@pytest.mark.parametrize("kind", ["ForCTC", "ForSequenceClassification"])
def test_a_task_head_on_the_bases_side_only_is_refused(kind: str) -> None:
    headed = fine_tune(build("Hubert"), "Hubert", kind).state_dict()
    assert findings(HUBERT, headed) == ()
    (finding,) = findings(headed, HUBERT)
    assert finding.allowed_by == ALLOW_UNRELATED
    assert "are they swapped?" in finding.text
    assert finding.hint == "in the other order: speechft-merge tuned base"


def test_heads_on_both_sides_or_of_pre_training_say_nothing() -> None:
    head = {"lm_head.weight": torch.ones(7, 32)}
    assert refusals(HUBERT | head, prefixed("hubert.", moved(HUBERT)) | head) == ()
    assert refusals(HUBERT | {"final_proj.weight": torch.ones(7, 32)}, moved(HUBERT)) == ()


def test_the_output_projection_of_an_encoder_decoder_says_nothing() -> None:
    whisper = build("Whisper", "ForConditionalGeneration").state_dict()
    encoder = {name: tensor for name, tensor in moved(whisper).items() if "encoder." in name}
    assert refusals(whisper, encoder) == ()


@pytest.mark.parametrize("head", ["fc", "linear", "output", "cls", "ctc_lin"])
def test_a_head_of_an_own_class_is_one_as_well(head: str) -> None:
    headed = prefixed("encoder.", moved(HUBERT)) | {f"{head}.weight": torch.ones(7, 32)}
    assert findings(HUBERT, headed) == ()
    (told,) = refusals(headed, HUBERT)
    assert f"a task's head ({head})" in told
    assert refusals(headed, prefixed("net.", moved(HUBERT)) | {"my_tagger.weight": torch.ones(3, 32)}) == ()


@pytest.mark.parametrize("kept", ["optimizer", "optimizer_states", "optim_state_dict"])
def test_a_base_with_an_optimizer_beside_a_fine_tune_with_no_trace_is_refused(kept: str, tmp_path: Path) -> None:
    trained = {"state_dict": HUBERT, kept: [{}], "pytorch-lightning_version": "2.5"}
    torch.save(trained, tmp_path / "trained.pt")
    torch.save(moved(HUBERT), tmp_path / "plain.pt")
    torch.save({"state_dict": moved(HUBERT), "epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(MismatchError, match=rf"what a trainer leaves \({kept}\).*are they swapped"):
        merge(tmp_path / "trained.pt", tmp_path / "plain.pt", tmp_path / "out")
    merge(tmp_path / "plain.pt", tmp_path / "trained.pt", tmp_path / "out")
    merge(tmp_path / "trained.pt", tmp_path / "other.pt", tmp_path / "other_out")


def test_the_traces_of_a_trainer_beside_the_base_only_are_refused(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("tuned", 0)):
        build("Hubert", seed=seed).save_pretrained(tmp_path / name)
    (tmp_path / "base/trainer_state.json").write_text("{}")
    with pytest.raises(MismatchError, match=r"trainer_state.json.*are they swapped"):
        merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    (tmp_path / "tuned/trainer_state.json").write_text("{}")
    merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", options=MergeOptions(fsync=False))
