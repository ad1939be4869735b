"""Whose voice a recording is, by tables, folders and names as corpora have them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError
from speechft_merge.similarity.grouping import group_files
from speechft_merge.similarity.probe import find_recordings
from speechft_merge.similarity.request import ProbeRequest

if TYPE_CHECKING:
    from conftest import WriteAudio


@pytest.mark.parametrize(
    ("files", "groups", "by"),
    [
        (["d/1272/128104/1272-128104-0.flac", "d/1272/135031/x.flac", "d/84/1/84-1-0.flac"], "1272 1272 84", "folder"),
        (["1272-128104-0000.flac", "1272-128104-0001.flac", "84-121123-0000.flac"], "1272 1272 84", "name"),
        (["p225_001.wav", "p225_002.wav", "p226_001.wav"], "p225 p225 p226", "name"),
        (["anna/1.wav", "anna/2.wav", "ben/1.wav"], "anna anna ben", "folder"),
        (["interview.wav", "lecture.wav"], "interview.wav lecture.wav", "file"),
        (["data/long-talk.wav", "data/other.wav"], "long other", "name"),
        (["all/anna/1.wav", "all/ben_7.wav", "all/cleo.wav"], "anna ben cleo", "folder"),
        (["only.wav"], "only.wav", "file"),
        (["-_odd.wav", "_.wav"], "-_odd.wav _.wav", "file"),
    ],
)  # fmt: skip
def test_corpora_are_grouped_by_what_their_paths_say(files: list[str], groups: str, by: str) -> None:
    assert group_files([Path(file) for file in files]) == (groups.split(), by)


def test_a_rule_takes_the_place_of_what_paths_say() -> None:
    files = [Path(f"/data/dev/{speaker}/{speaker}-{number}.wav") for speaker in (1, 2) for number in (7, 8)]
    assert group_files(files, "file") == (["1/1-7.wav", "1/1-8.wav", "2/2-7.wav", "2/2-8.wav"], "file")
    assert group_files(files, r"-(\d)\.wav") == (["7", "8", "7", "8"], "pattern")
    assert group_files(files, r"\d-[78]")[0] == ["1-7", "1-8", "2-7", "2-8"]
    with pytest.raises(UsageError, match=r"'-9' finds no group in /data/dev/1/1-7\.wav"):
        group_files(files, "-9")
    with pytest.raises(UsageError, match="is no regular expression"):
        ProbeRequest(group_by="(")


def test_a_table_names_files_and_their_groups_and_may_have_other_columns(
    write_audio: WriteAudio, tmp_path: Path
) -> None:
    for name in ("a.wav", "in/b.wav", "c.wav"):
        write_audio(name)
    table = tmp_path / "list.tsv"
    table.write_text("path\ttext\tspeaker\nc.wav\thello\tanna\nin/b.wav\t\tben\n")
    found, by = find_recordings([table, tmp_path])
    assert by == "speaker and file"
    assert [(path.name, group) for path, group in found] == [("c.wav", "anna"), ("b.wav", "ben"), ("a.wav", "a.wav")]
    assert find_recordings([table], "file")[1] == "file"


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("", CheckpointError, "does not say which recording is of which group"),
        ("a.wav\tanna\n", CheckpointError, r"name its columns in the first line: path<TAB>group or speaker or voice"),
        ("path\tgroup\na.wav\n", CheckpointError, "line 2 lacks a path or its group"),
        ("path\tgroup\na.wav\tx\na.wav\ty\n", CheckpointError, "line 3: 'a.wav' occurs twice"),
        ("path\tgroup\nb.wav\tx\n", NotFoundError, "1 of 1 files do not exist, first 'b.wav'"),
        ("path\tgroup\n", NotFoundError, "names no audio file"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    content: str, error: type[Exception], said: str, write_audio: WriteAudio, tmp_path: Path
) -> None:
    write_audio("a.wav")
    (tmp_path / "list.tsv").write_text(content)
    with pytest.raises(error, match=said):
        find_recordings([tmp_path / "list.tsv"])
