"""Results tell what they are: in a line, as text, as HTML, and as records; hostile names are shown as text."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import speechft_merge as sm
from speechft_merge.bench import SweepRequest
from speechft_merge.display import Table, Told
from speechft_merge.sweep.grid import lay_out
from speechft_merge.sweeping import collect, sweep

if TYPE_CHECKING:
    from conftest import Run

PAIR = Path(__file__).parents[2] / "examples/pair"
MODELS = str(PAIR / "base"), str(PAIR / "finetuned")
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each kind of result."""
    folder = tmp_path_factory.mktemp("told")
    opened = sm.open_merge(*MODELS)
    merged = opened.write(folder / "merged")
    report = opened.compare(sm.ProbeRequest(seconds=20), merged)
    sweep(*MODELS, folder / "swept", SweepRequest(lay_out([0.25]), probe=sm.ProbeRequest(seconds=10)))
    swept, verified = collect(str(folder / "swept"), sm.Rule()), sm.verify(folder / "merged", quick=True)
    opened.close()
    return {
        "merge": opened, "plan": opened.plan, "checkpoint": opened.base, "result": merged, "manifest": merged.manifest,
        "report": report, "sweep": swept, "verification": verified,
    }  # fmt: skip


KINDS = ("merge", "plan", "checkpoint", "result", "manifest", "report", "sweep", "verification")


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_a_line_in_a_shell(kind: str, results: dict[str, Any]) -> None:
    shown = repr(results[kind])
    assert len(shown) <= 120
    assert "\n" not in shown


class Page(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("kind", ["merge", "result", "report", "sweep", "verification"])
def test_a_notebook_shows_what_the_summary_says(kind: str, results: dict[str, Any]) -> None:
    result = results[kind]
    page, words = Page(result._repr_html_()), result.summary().split()
    assert {*page.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert {*" ".join(page.texts).split()} - {*words} == set()


def test_the_summary_is_what_the_command_prints(results: dict[str, Any], run: Run, tmp_path: Path) -> None:
    printed = run("merge", *MODELS, "-o", tmp_path / "merged").out
    assert printed.startswith(results["result"].summary())


class Hostile(Told):
    """A result with what a file may hold."""

    def parts(self, verbose: int = 0) -> Any:
        yield Table([HOSTILE, "b"], [[HOSTILE, "1"]])
        yield HOSTILE


def test_foreign_names_are_text_in_html() -> None:
    page = Page(Hostile()._repr_html_())
    assert "img" not in page.tags
    assert not any("\x1b" in text for text in page.texts[2:])


@pytest.mark.parametrize("kind", ["report", "sweep"])
def test_records_are_flat_and_say_what_the_csv_says(kind: str, results: dict[str, Any]) -> None:
    records = results[kind].to_records()
    assert len({tuple(record) for record in records}) == 1
    assert all(isinstance(value, str | int | float | None) for record in records for value in record.values())
    json.dumps(records, allow_nan=False)
    lines = [*csv.DictReader(io.StringIO(results[kind].to_csv()))]
    for record, line in zip(records, lines, strict=True):
        for key, value in record.items():
            if isinstance(value, float):
                assert float(line[key]) == value
            else:
                assert line[key] == (
                    "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
                )


def test_records_have_the_figures_of_the_report(results: dict[str, Any]) -> None:
    report = results["report"]
    found = {(record["part"], record["layer"], record["pair"]): record for record in report.to_records()}
    assert len(found) == 3 * len(report.layers)
    for layer in report.layers:
        for pair, similarity in layer.pairs.items():
            record = found[layer.key.part, layer.key.block, pair]
            assert (record["cka"], record["drift"]) == (similarity.cka, layer.drift)
    undefined = replace(report.layers[0].pairs["base_merged"], cka=math.nan)
    layers = (replace(report.layers[0], pairs={"base_merged": undefined}),)
    assert replace(report, layers=layers).to_records()[0]["cka"] is None
