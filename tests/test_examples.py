"""The examples in the docstrings of the public functions run, and give what they show."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import speechft_merge

ENTRY_POINTS = ["compare", "merge", "open_checkpoint", "open_merge"]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_example_of_a_public_function_gives_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    function = getattr(speechft_merge, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert len(example.examples) >= 2
    told: list[str] = []
    assert doctest.DocTestRunner().run(example, out=told.append).failed == 0, "".join(told)
