"""What is merged is what was opened: a file that changes meanwhile ends the merge."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechft_merge import MergeOptions, merge
from speechft_merge.comparing import compare
from speechft_merge.errors import CheckpointError, SpeechFTMergeError, TemporaryError
from speechft_merge.merging import open_merge
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from conftest import Pair, Run

SHARDED = MergeOptions(fsync=False, max_shard_size=20_000)


def overwrite(path: Path) -> None:
    """As a trainer does that saves into the same file."""
    with path.open("r+b") as file:
        file.seek(-400, os.SEEK_END)
        file.write(b"\x3d" * 400)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replace(path: Path) -> None:
    (path.parent / "new").write_bytes(b"x")
    (path.parent / "new").rename(path)


@pytest.mark.parametrize("change", [overwrite, append])
@pytest.mark.parametrize("which", [0, 1], ids=["base", "finetuned"])
@pytest.mark.parametrize("options", [MergeOptions(fsync=False), SHARDED], ids=["single", "sharded"])
def test_an_input_that_is_written_to_ends_the_merge(
    change: Callable[[Path], None], which: int, options: MergeOptions, copied: list[str], tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in copied]
    with open_merge(paths[0], paths[1], options=options) as opened:
        change(paths[which] / "model.safetensors")
        with pytest.raises((TemporaryError, CheckpointError), match="was written to while it was read"):
            opened.write(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {*copied}


@pytest.mark.parametrize("change", [replace, Path.unlink])
def test_an_input_that_is_replaced_or_deleted_is_merged_as_it_was_opened(
    change: Callable[[Path], None], copied: list[str], pair: Pair, tmp_path: Path
) -> None:
    merge(*pair.args, tmp_path / "expected", options=MergeOptions(fsync=False))
    with open_merge(tmp_path / copied[0], tmp_path / copied[1], options=MergeOptions(fsync=False)) as opened:
        change(tmp_path / copied[1] / "model.safetensors")
        opened.write(tmp_path / "out")
    made, expected = (tmp_path / name / "model.safetensors" for name in ("out", "expected"))
    assert made.read_bytes() == expected.read_bytes()


def test_a_comparison_of_what_changes_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechft_merge import comparing

    shutil.copytree(Path(__file__).parents[2] / "examples/pair", tmp_path, dirs_exist_ok=True)

    compare_models = comparing.compare_models

    def changed(*args: object) -> object:
        overwrite(tmp_path / "finetuned/model.safetensors")
        return compare_models(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(comparing, "compare_models", changed)
    with pytest.raises(TemporaryError, match="was written to"):
        compare(tmp_path / "base", tmp_path / "finetuned")


def test_too_many_open_files_are_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SpeechFTMergeError, match=r"too many files are open; raise the limit .*ulimit -n"):
        LocalFile(tmp_path / "file")


@pytest.mark.parametrize("length", [200, 240, 255])
@pytest.mark.parametrize("letter", ["n", "é"])
def test_an_output_may_have_any_name_that_a_file_may(
    letter: str, length: int, pair: Pair, run: Run, tmp_path: Path
) -> None:
    name = letter * (length // len(letter.encode()))
    for options in ([], ["--overwrite", "--alpha", "0.3"], ["--overwrite", "--max-shard-size", "50KB"]):
        assert run(*pair.args, "-o", name, *options).code == 0
        assert [path.name for path in tmp_path.iterdir()] == [name]
