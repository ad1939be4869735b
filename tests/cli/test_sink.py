"""One result, three ways to show it; commands know of none of them."""

from __future__ import annotations

import json

import pytest

from speechft_merge.cli.sink import Shown, Sink
from speechft_merge.cli.tables import Table

ODD = "a\x1b[2J"
ANSWER = Shown(
    lambda: {"odd": ODD},
    lambda verbose: [Table(["name", "number"], [[ODD, "1"], ["b", "12"]]), f"verbose {verbose}"],
    headline=f"headline {ODD}",
    warnings=(f"careful {ODD}",),
)


def shown(sink: Sink, capsys: pytest.CaptureFixture[str]) -> list[str]:
    sink.show(ANSWER)
    out, err = capsys.readouterr()
    assert err == "speechft-merge: warning: careful a\\x1b[2J\n"
    assert "\x1b" not in out
    return out.splitlines()


@pytest.mark.parametrize("verbose", [0, 2])
def test_people_get_tables_and_sentences(verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(Sink(verbose=verbose), capsys)
    assert [line.split() for line in lines[:1] + lines[2:]] == [
        ["name", "number"], ["a\\x1b[2J", "1"], ["b", "12"], ["verbose", str(verbose)],
    ]  # fmt: skip
    assert lines[2].endswith(" 1")


def test_quiet_is_the_headline(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Sink(quiet=True), capsys) == ["headline a\\x1b[2J"]
    Sink(quiet=True).show(Shown(dict, lambda _: ["for people"]))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_json_is_the_document(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads("\n".join(shown(Sink(quiet=quiet, json=True), capsys))) == {"odd": "a\x1b[2J"}


def test_details_are_for_the_verbose_and_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Sink().detail("nothing")
    Sink(verbose=1, json=True).detail("cosine\x1b")
    assert capsys.readouterr() == ("", "cosine\\x1b\n")
    Sink(verbose=1).detail("n" * 1_000_000)
    assert len(capsys.readouterr().err) < 2100
