"""One result, three ways to show it; commands know of none of them."""

from __future__ import annotations

import json

import pytest

from speechft_merge.cli.sink import Shown, Sink
from speechft_merge.display import Table
from speechft_merge.text import LINE


def answer(odd: str = "a\x1b[2J") -> Shown:
    return Shown(
        lambda: {"odd": odd},
        lambda verbose: [Table(["name", "number"], [[odd, "1"], ["b", "12"]]), f"verbose {verbose} {odd}"],
        headline=f"headline {odd}",
        warnings=(f"careful {odd}",),
    )


def shown(sink: Sink, capsys: pytest.CaptureFixture[str]) -> list[str]:
    sink.show(answer())
    out, err = capsys.readouterr()
    assert err == "speechft-merge: warning: careful a\\x1b[2J\n"
    assert "\x1b" not in out
    return out.splitlines()


@pytest.mark.parametrize("verbose", [0, 2])
def test_people_get_tables_and_sentences(verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(Sink(verbose=verbose), capsys)
    assert [line.split() for line in lines[:1] + lines[2:]] == [
        ["name", "number"], ["a\\x1b[2J", "1"], ["b", "12"], ["verbose", str(verbose), "a\\x1b[2J"],
    ]  # fmt: skip
    assert lines[2].endswith(" 1")


def test_tables_are_not_folded_where_no_terminal_says_how_wide_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Sink().show(answer("x" * 150))
    assert sum("x" * 150 in line for line in capsys.readouterr().out.splitlines()) == 2


def test_a_long_warning_loses_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    Sink(quiet=True).show(answer("x" * 5_000_000 + "end"))
    err = capsys.readouterr().err
    assert len(err) < LINE + 50
    assert "careful x" in err
    assert "xxx ... xxx" in err
    assert err.endswith("xend\n")


def test_quiet_is_the_headline(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Sink(quiet=True), capsys) == ["headline a\\x1b[2J"]
    Sink(quiet=True).show(Shown(dict, lambda _: ["for people"]))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_json_is_the_document(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads("\n".join(shown(Sink(quiet=quiet, json=True), capsys))) == {"odd": "a\x1b[2J"}


def test_a_document_is_ascii_whatever_the_encoding_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Sink(json=True).show(answer("modèle 模型"))
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"odd": "modèle 模型"}


def test_details_are_for_the_verbose_and_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Sink().detail("nothing")
    Sink(verbose=1, json=True).detail("cosine\x1b")
    assert capsys.readouterr() == ("", "cosine\\x1b\n")
    Sink(verbose=1).detail("n" * 1_000_000)
    assert len(capsys.readouterr().err) < 2100
