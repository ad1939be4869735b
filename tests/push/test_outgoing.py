"""Which files of an output are pushed, and what their bytes tell of the machine that made them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechft_merge.errors import CheckpointError, NotFoundError
from speechft_merge.output.output import Output
from speechft_merge.push.outgoing import clean_contents, list_outgoing
from speechft_merge.record.card import short, shortener
from speechft_merge.record.manifest import read_manifest

if TYPE_CHECKING:
    from conftest import Pair, Run


@pytest.fixture
def output(pair: Pair, run: Run, tmp_path: Path) -> Path:
    """A merge of models, and into a folder, that are named by absolute paths."""
    assert run(*pair.args, "--output", tmp_path / "out", "-q").code == 0
    return tmp_path / "out"


def test_files_added_by_hand_go_along_and_hidden_ones_do_not(output: Path) -> None:
    written = set(list_outgoing(output))
    for name in ("notes.md", "language_model/unigrams.txt", "a/b/c.txt", ".hidden", ".git/config", "a/.cache/x"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("")
    assert list_outgoing(output).keys() - written == {"notes.md", "language_model/unigrams.txt", "a/b/c.txt"}


@pytest.mark.parametrize("kind", ["file", "folder", "broken"])
def test_a_link_out_of_the_folder_is_not_followed(kind: str, output: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (output / "added").mkdir()
    (output / "added/link").symlink_to(tmp_path / kind)
    with pytest.raises(CheckpointError, match="link that leads out of the folder"):
        list_outgoing(output)


def test_a_link_within_the_folder_is_a_file(output: Path) -> None:
    (output / "copy.json").symlink_to("config.json")
    assert "copy.json" in list_outgoing(output)


def test_an_output_that_is_reached_by_a_link_is_one(output: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(output)
    assert list_outgoing(tmp_path / "link").keys() == list_outgoing(output).keys()


def test_a_folder_without_a_manifest_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not the output of a merge"):
        list_outgoing(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_manifest_that_is_none_is_not_pushed(content: str, output: Path) -> None:
    (output / "speechft_merge.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"speechft_merge\.json is (not|nested)"):
        clean_contents(list_outgoing(output))


def test_no_path_of_this_machine_is_pushed_and_the_output_keeps_it(output: Path, pair: Pair) -> None:
    (output / "README.md").write_text(f"Of {pair.base}, see https://example.org{pair.base} and {pair.base}-2")
    (output / "similarity.json").write_text(json.dumps({"warnings": [f"{pair.finetuned}: odd"]}))
    cleaned = clean_contents(list_outgoing(output))
    assert cleaned.keys() == {"speechft_merge.json", "README.md", "similarity.json"}
    assert str(pair.base.parent) not in cleaned["speechft_merge.json"].decode()
    assert str(output.parent) not in cleaned["speechft_merge.json"].decode()
    assert cleaned["README.md"].decode() == f"Of base, see https://example.org{pair.base} and {pair.base}-2"
    assert json.loads(cleaned["similarity.json"]) == {"warnings": ["finetuned: odd"]}
    kept = json.loads((output / "speechft_merge.json").read_text())
    assert kept["base"]["reference"] == str(pair.base)
    told = json.loads(cleaned["speechft_merge.json"])
    assert told["command"] == ["base", "finetuned", "--output", "out", "-q"]
    assert {**told, "command": None, "base": None, "finetuned": None} == {
        **kept, "command": None, "base": None, "finetuned": None
    }  # fmt: skip


def test_a_downloaded_copy_is_the_output_of_the_same_merge(output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    for name, content in clean_contents(list_outgoing(output)).items():
        (copy / name).write_bytes(content)
    here, there = read_manifest(output), read_manifest(copy)
    assert here is not None
    assert there is not None
    assert here.merge_id == there.merge_id
    assert Output(copy, there.merge_id).finished() == there


@pytest.mark.parametrize(
    ("word", "shortened"),
    [
        ("/home/me/models/base", "base"), ("~/models/base/", "base"), ("../../base", "base"), ("./base", "base"),
        ("~me/base", "base"), ("/x/last.ckpt#student", "last.ckpt#student"), ("--recipe=/x/r.yaml", "--recipe=r.yaml"),
        ("-o/home/me/out", "-oout"), ("-qo../out", "-qoout"), ("/home/my models/base one", "base one"),
        ("org/name@main:a/b", "org/name@main:a/b"), ("cnn=0", "cnn=0"), ("-oout", "-oout"), (".", "."), ("..", ".."),
        ("--layer-alpha", "--layer-alpha"), ("**.attention.**=0.5", "**.attention.**=0.5"), ("0.25", "0.25"),
    ],
)  # fmt: skip
def test_of_a_path_the_last_part_is_told(word: str, shortened: str) -> None:
    assert short(word) == shortened


def test_paths_are_shortened_where_they_stand_in_a_text_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    shorten = shortener(["/a", "/a/b c", "--probe=/clips/x", "~/models/base", "org/name", "0.25", "/", "."])
    assert shorten("'/a/b c' and/a (/a) /clips/x: /home/me/models/base, ~/models/base/config.json.") == (
        "'b c' and/a (a) x: base, base/config.json."
    )
    assert shorten("org/name 0.25 / . https://x/a") == "org/name 0.25 / . https://x/a"
