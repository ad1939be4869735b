"""A user's Python function on a live model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from candidates import Given

from speechft_merge.errors import ScoreError, UsageError
from speechft_merge.scoring.function import parse_function_score
from speechft_merge.scoring.scores import Better

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules of the user's into the working directory, by name."""
    monkeypatch.chdir(tmp_path)
    written = set()

    def write(**sources: str) -> None:
        written.update(sources)
        for name, source in sources.items():
            Path(f"{name}.py").write_text(source)

    before = [*sys.path]
    yield write
    assert sys.path == before
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def candidate() -> Given:
    return Given(model=torch.nn.Linear(2, 1).eval(), processor="processor")


def test_it_returns_a_number_records_or_a_dict_of_both(write: Write, candidate: Given) -> None:
    write(
        my_evaluation="""
def number(model, processor):
    assert processor == "processor" and not model.training
    return model.weight.sum() * 0 + 0.5

def records(model, processor):
    model.train()
    for i in range(4):
        yield {"id": i, "group": i % 2, "correct": i, "total": 3}

class Scores:
    @staticmethod
    def several(model, processor):
        from my_helper import LOSS
        return {"loss": LOSS, "accuracy": records(model, processor)}
""",
        my_helper="LOSS = 2",
    )
    (number,) = parse_function_score("my_evaluation:number").score(candidate)
    assert (number.name, number.better, number.value, number.units) == ("number", Better.HIGHER, 0.5, ())
    (records,) = parse_function_score("phones=my_evaluation:records").score(candidate)
    assert (records.name, records.value, [unit.group for unit in records.units]) == ("phones", 0.5, ["0", "1"] * 2)
    assert not candidate.model.training
    loss, accuracy = parse_function_score("all=my_evaluation:Scores.several").score(candidate)
    assert (loss.name, loss.value) == ("all.loss", 2)
    assert (accuracy.name, accuracy.units) == ("all.accuracy", records.units)


def test_a_changed_module_is_another_scorer(write: Write) -> None:
    found = []
    for source in ("def f(m, p): return 1", "def f(m, p): return 1", "def f(m, p): return 2"):
        sys.modules.pop("my_evaluation", None)
        write(my_evaluation=source)
        found.append(parse_function_score("wer:lower=my_evaluation:f").description)
    assert found[0] == found[1] != found[2]
    assert (found[0]["name"], found[0]["better"], found[0]["function"]) == ("wer", "lower", "my_evaluation:f")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    return 1 / 0", r"^f: my_evaluation\.py, line 4: ZeroDivisionError: division by zero$"),
        ("    import json\n    json.loads('[')", r"^f: my_evaluation\.py, line 5: JSONDecodeError: "),
        ("    return model(1, 2)", r"^f: my_evaluation\.py, line 4: TypeError: "),
        ("    yield {'id': 1, 'value': 1}\n    raise KeyError", r"^f: my_evaluation\.py, line 5: KeyError$"),
        ("    raise SystemExit(1)", r"^f: my_evaluation\.py, line 4: SystemExit: 1$"),
        ("    return {'a': (1 / i for i in (1, 0))}", r"^f: my_evaluation\.py, line 4: ZeroDivisionError"),
        ("    return {'a b': 1}", r"^f: 'a b' cannot name a score"),
        ("    return {}", r"^f returned no score"),
        ("    return None", r"^f is None, not a number$"),
        ("    return 'good'", r"^f is 'good', not a number$"),
        ("    return {'a': {}}", r"^f\.a is \{\}, not a number$"),
        ("    return [1, 2]", r"^f: record 1 is 1, not a record"),
        ("    return []", r"^f: there is no record"),
    ],
)
def test_an_error_of_the_users_code_names_its_line(body: str, told: str, write: Write, candidate: Given) -> None:
    write(my_evaluation=f"import os\n\ndef f(model, processor):\n{body}\n")
    with pytest.raises(ScoreError, match=told):
        parse_function_score("my_evaluation:f").score(candidate)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1\ny = )", r"^f: my_evaluation\.py, line 2: SyntaxError"),
        ("x = 1\nimport not_installed_here", r"^f: my_evaluation\.py, line 2: ModuleNotFoundError"),
        ("x = 1\nraise SystemExit", r"^f: my_evaluation\.py, line 2: SystemExit"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error_before_any_model(source: str, told: str, write: Write) -> None:
    write(my_evaluation=source)
    with pytest.raises(ScoreError, match=told):
        parse_function_score("my_evaluation:f")


def test_what_is_not_there_or_badly_named_is_refused(write: Write) -> None:
    write(my_evaluation="")
    for text, told in {
        "my_evaluation:f": r"my_evaluation\.py has no function f",
        "my_nothing:f": "there is no module my_nothing",
        "my_nothing.inner:f": "there is no module my_nothing",
        "my_evaluation": r"is not \[NAME=\]MODULE:FUNCTION",
        "my_evaluation.py:f(1)": "is not",
        "=my_evaluation:f": "cannot name a score",
    }.items():
        with pytest.raises(UsageError, match=told):
            parse_function_score(text)
