"""Tables on terminals of any width: whole words and numbers, whatever it takes."""

from __future__ import annotations

import io
import re
import sys

import pytest

from speechft_merge.cli.failure import Failure
from speechft_merge.display import Table
from speechft_merge.text import columns_of, wrapped

NAME = "encoder.layers.0.feed_forward.intermediate_dense.weight"
SCORES = Table(
    ["alpha", "tilt", "words", "sounds of speech", "CKA to base", ""],
    [["0", "0", "0.100 ±0.020", "0.805 ±0.157", "1.000", "*"], ["0.5", "-0.5", "0.200 ±0.030", "12,345", "0.7", "~x"]],
    keys=2,
)
TENSORS = Table(["tensor", "becomes", "why"], [[NAME, "left out", "not in the fine-tune"], ["x", "interpolated", ""]])
FACTS = Table(["", "model"], [["family", "HuBERT, 12 layers of width 768"], ["size", "6.2 MB in 1 file"]])
LAYERS = Table(["layer", "models", "frame"], [["0", "base, fine-tuned", "0.944"], ["1", "base, merged", "0.994"]])


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", range(20, 130, 3))
@pytest.mark.parametrize("table", [SCORES, TENSORS, FACTS, LAYERS], ids=["scores", "tensors", "facts", "layers"])
def test_a_table_fits_and_breaks_no_word_or_number(table: Table, columns: int) -> None:
    lines = table.draw(columns).splitlines()
    bold = re.sub(r"\x1b\[[\d;]*m", "", table.draw(columns, bold=True))
    assert [line.rstrip() for line in bold.splitlines()] == lines
    words = {word for row in (table.titles, *table.rows) for cell in row for word in cell.split()}
    found = {word for line in lines for word in re.sub("[:─]", " ", line).split()}
    assert words - {table.titles[0]} <= found <= words
    assert all(len(line) <= columns or NAME in line for line in lines)


def test_numbers_go_on_below_beside_what_tells_the_rows_apart() -> None:
    lines = SCORES.draw(36).splitlines()
    rows = [line.split() for line in lines if line.startswith("0.5")]
    assert rows == [["0.5", "-0.5", *cell.split(), "~x"] for cell in ("0.200 ±0.030", "12,345", "0.7")]


def test_what_is_too_wide_for_that_becomes_a_list() -> None:
    assert TENSORS.draw(60).splitlines() == [
        NAME,
        "  becomes: left out",
        "  why: not in the fine-tune",
        "x",
        "  becomes: interpolated",
    ]
    assert FACTS.draw(15).splitlines()[:3] == [": model", "family: HuBERT,", "  12 layers of"]


def test_a_log_has_whole_lines_and_no_blanks_at_their_end() -> None:
    long = Table(["name", "why", "nothing"], [[NAME * 5, "word " * 99, ""]])
    lines = long.draw().splitlines()
    assert f"{NAME * 5}   {('word ' * 99).strip()}" in lines
    assert [line for line in lines if line != line.rstrip() or "nothing" in line] == []


def test_sentences_are_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    sentence = "no such option: --keep-head is an option of merge"
    assert wrapped(sentence, columns_of(io.StringIO())) == sentence
    assert wrapped(sentence, columns_of(Terminal()), "  ") == "no such option: --keep-head is\n  an option of merge"
    failure = Failure("a word too many", "words " * 9, ("leave --keep-head out, or pass it to merge",))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert max(map(len, failure.in_words().splitlines())) <= 30
