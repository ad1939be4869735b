"""Two encoders in one file: an error that lists both, unless one is plainly meant; never the first, or the shorter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from models import build
from plan_pairs import Tensors, findings, moved, prefixed, refusals, without

from speechft_merge import merge
from speechft_merge.errors import MismatchError
from speechft_merge.plan.findings import Level

if TYPE_CHECKING:
    from pathlib import Path

HUBERT: Tensors = build("Hubert").state_dict()
TEACHER, STUDENT = HUBERT, moved(HUBERT)
STRANGER: Tensors = build("Hubert", seed=9).state_dict()


@pytest.mark.parametrize("names", [("teacher.", "s."), ("s.", "teacher.")])
def test_teacher_and_student_are_listed_with_their_relation_in_any_order(names: tuple[str, ...]) -> None:
    models = {"teacher.": TEACHER, "s.": STUDENT}
    both = {key: tensor for name in names for key, tensor in prefixed(name, models[name]).items()}
    (finding,) = (found for found in findings(HUBERT, both) if found.level is Level.REFUSAL)
    assert finding.text == "tuned holds 2 encoders: 's' (near base), 'teacher' (equal to base)"
    assert finding.hint == "name one of them: tuned#s or tuned#teacher"


@pytest.mark.parametrize("word", ["ema", "model_ema", "averaged_model", "swa", "shadow"])
def test_an_average_beside_the_model_is_noted_and_left(word: str) -> None:
    both = prefixed(f"{word}.", moved(HUBERT, seed=2)) | prefixed("model.", STUDENT)
    (finding,) = findings(HUBERT, both)
    assert finding.level is Level.NOTE
    assert finding.text.endswith("; 'model' is taken")


def test_of_two_encoders_the_one_that_is_related_is_meant() -> None:
    (finding,) = findings(HUBERT, prefixed("a.", STRANGER) | prefixed("b.", STUDENT))
    assert (finding.level, finding.text.endswith("; 'b' is taken")) == (Level.NOTE, True)


def test_a_base_with_two_encoders_is_refused_likewise() -> None:
    (told,) = refusals(prefixed("one.", TEACHER) | prefixed("two.", moved(HUBERT, seed=3)), STUDENT)
    assert told.startswith("base holds 2 encoders: 'one' (near tuned), 'two' (near tuned)")


def test_the_stacks_of_an_encoder_decoder_are_not_two_encoders() -> None:
    whisper = build("Whisper", "ForConditionalGeneration").state_dict()
    assert findings(whisper, moved(whisper)) == ()
    bare = {n.removeprefix("model.encoder."): t for n, t in moved(whisper).items() if n.startswith("model.encoder.")}
    (finding,) = findings(whisper, bare)
    assert finding.text == "tuned has no decoder: it stays the base's"


def test_a_copy_of_a_model_inside_it_is_an_encoder_as_well() -> None:
    told, *_ = refusals(HUBERT, STUDENT | prefixed("teacher.", TEACHER))
    assert told == "tuned holds 2 encoders: the model itself (near base), 'teacher' (equal to base)"
    (finding,) = findings(HUBERT, STUDENT | prefixed("ema.", moved(HUBERT, seed=5)))
    assert (finding.level, finding.text.endswith("; the model itself is taken")) == (Level.NOTE, True)


def test_a_trifle_that_one_lacks_does_not_make_the_other_the_one_meant() -> None:
    student = without(moved(HUBERT), "masked_spec_embed")
    told, *_ = refusals(HUBERT, prefixed("student.", student) | prefixed("teacher.", moved(TEACHER, seed=4)))
    assert told.startswith("tuned holds 2 encoders")


def test_tensors_beside_the_models_dictionary_do_not_stand_for_it(tmp_path: Path) -> None:
    """A queue of a contrastive loss, a state of a random generator."""
    loose = {"queue": torch.randn(64, 90), "rng": torch.zeros(500, dtype=torch.uint8)}
    torch.save({"model": TEACHER} | loose, tmp_path / "base.pt")
    torch.save({"model": STUDENT} | loose, tmp_path / "tuned.pt")
    merge(str(tmp_path / "base.pt"), str(tmp_path / "tuned.pt"), tmp_path / "out")
    found = torch.load(tmp_path / "out/merged_model.pt")
    assert all(torch.equal(found[name], tensor) for name, tensor in loose.items())
    assert not torch.equal(found["model"]["encoder.layer_norm.weight"], TEACHER["encoder.layer_norm.weight"])


def test_a_model_pickled_whole_beside_tensors_is_refused_unless_these_are_named(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1000, 100))
    torch.save(HUBERT, tmp_path / "base.pt")
    torch.save({"model": model, "ema_state_dict": STUDENT, "criterion": torch.nn.Linear(3, 3)}, tmp_path / "run.pt")
    with pytest.raises(MismatchError, match="module under 'model', beside the tensors under 'ema_state_dict'"):
        merge(tmp_path / "base.pt", tmp_path / "run.pt", tmp_path / "out")
    merge(tmp_path / "base.pt", f"{tmp_path / 'run.pt'}#ema_state_dict", tmp_path / "out")
    torch.save({"state_dict": STUDENT, "criterion": torch.nn.Linear(3, 3)}, tmp_path / "loss.pt")
    assert merge(tmp_path / "base.pt", tmp_path / "loss.pt", tmp_path / "other").findings == ()


def test_a_student_of_fewer_layers_is_an_encoder_as_well() -> None:
    student = moved({name: HUBERT[name] for name in build("Hubert", num_hidden_layers=1).state_dict()})
    told, *_ = refusals(HUBERT, prefixed("teacher.", TEACHER) | prefixed("student.", student))
    assert "holds 2 encoders" in told
