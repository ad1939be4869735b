"""The public names: all are there, documented with an example that runs, field by field."""

from __future__ import annotations

import doctest
import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import speechft_merge

NAMES = [name for name in speechft_merge.__all__ if name != "__version__"]
RETURNED = {"Checkpoint", "Merge", "MergeResult", "Plan", "SpeechFTMergeError", "SweepReport", "Verification"}
"""What functions return or raise: their examples show them."""


def test_the_names_are_offered_by_completion() -> None:
    assert dir(speechft_merge) == sorted(speechft_merge.__all__)
    assert all(hasattr(speechft_merge, name) for name in dir(speechft_merge))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_with_an_example_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    public = getattr(speechft_merge, name)
    assert public.__doc__
    examples = [test for test in doctest.DocTestFinder(recurse=False).find(public, name, globs={}) if test.examples]
    assert bool(examples) or name in RETURNED
    for example in examples:
        told: list[str] = []
        assert doctest.DocTestRunner().run(example, out=told.append).failed == 0, "".join(told)


@pytest.mark.parametrize("name", [name for name in NAMES if is_dataclass(getattr(speechft_merge, name))])
def test_help_tells_every_field(name: str) -> None:
    public: Any = getattr(speechft_merge, name)
    told = re.findall(r"^    (\w+): ", (inspect.getdoc(public) or "").partition("Raises:")[0], re.M)
    assert told == [field.name for field in fields(public) if not field.name.startswith("_")]


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isfunction(getattr(speechft_merge, name))])
def test_help_tells_every_argument(name: str) -> None:
    public = getattr(speechft_merge, name)
    told = re.findall(r"^    (\w+): ", (inspect.getdoc(public) or "").partition("Args:")[2], re.M)
    takes = [*inspect.signature(public).parameters]
    assert len(takes) == 1 or told[: len(takes)] == takes
