"""No file, whatever it holds, runs code, takes more than 300 MB or 10 s, or ends in more than a short message."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import corpus_torch  # noqa: F401  (adds to the corpus)
import pytest
from corpus import BASE, CORPUS, TUNED, Hostile, write_base
from safetensors.numpy import load_file, save
from zygote import Ended, Job, Runs, hidden

LONGEST_MESSAGE = 2000
MEMORY = 300.0
"""MB."""
SECONDS = 10.0


def test_there_are_enough_of_them() -> None:
    assert len(CORPUS) >= 250


@pytest.mark.slow
@pytest.mark.parametrize("hostile", CORPUS.values(), ids=CORPUS)
def test_a_hostile_file_is_refused_or_read_right(hostile: Hostile, runs: Runs, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (tmp_path / "model").mkdir()
    built = hostile.build(tmp_path / "model")
    tuned = built
    words = []
    if hostile.as_recipe:
        (tmp_path / "model/model.safetensors").write_bytes(save(TUNED))
        tuned, words = tmp_path / "model", ["--recipe", str(built)]
    merge = ["merge", str(base), str(tuned), "-o", "out", "-q", "--no-fsync", *words]
    (merged,) = runs([Job(merge, str(tmp_path), "merge")])
    assert_harmless(merged, hostile.codes, tmp_path)
    if merged.code == 0 and (tmp_path / "out/model.safetensors").exists():
        assert load_file(tmp_path / "out/model.safetensors").keys() == BASE.keys()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    if not hostile.as_recipe:
        (inspected,) = runs([Job(["inspect", str(tuned)], str(tmp_path), "inspect")])
        assert_harmless(inspected, hostile.codes | {0, 2, 65, 66}, tmp_path)


def assert_harmless(ended: Ended, codes: frozenset[int], folder: Path) -> None:
    assert ended.code in codes, ended
    assert "Traceback" not in ended.err
    assert len(ended.err) < LONGEST_MESSAGE
    assert not re.search("[\x1b\x07\u202e]", ended.out + ended.err)
    assert ended.cpu < SECONDS, ended
    assert ended.mb < MEMORY, ended
    assert not ended.code or (ended.err.strip() and not (folder / "out").exists())
    assert hidden(folder) == []
    assert not (folder / "pwned").exists(), "code ran"
