"""Two encoders in one file: an error that lists both, unless one is plainly meant; never the first, or the shorter."""

from __future__ import annotations

import pytest
from models import build
from plan_pairs import Tensors, findings, moved, prefixed, refusals

from speechft_merge.plan.findings import Level

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


def test_a_student_of_fewer_layers_is_an_encoder_as_well() -> None:
    student = moved({name: HUBERT[name] for name in build("Hubert", num_hidden_layers=1).state_dict()})
    told, *_ = refusals(HUBERT, prefixed("teacher.", TEACHER) | prefixed("student.", student))
    assert "holds 2 encoders" in told
