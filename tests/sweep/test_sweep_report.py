"""What is made of a sweep: document, CSV, table, figures, page, and the plot for terminals."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from simulated import a_report, a_rule, a_sweep, known_only

from speechft_merge.display import Table
from speechft_merge.errors import UsageError
from speechft_merge.sweep.decision import Rule, decide
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell, lay_out
from speechft_merge.sweep.plot import draw_sweep
from speechft_merge.sweep.report import SweepReport
from speechft_merge.sweep.results import CellResult
from speechft_merge.sweep.terminal import text_plot

FINE = lay_out([number / 20 for number in range(21)])
TILTED = lay_out([number / 20 for number in range(21)], (-0.5, 0.0, 0.5))
RULED = lay_out((0.2, 0.5), rules=[("cnn=0", "cnn=0.5")])


def reports() -> dict[str, SweepReport]:
    """Sweeps of every shape: 1 to 3 scores, tilts, rules, no goal, no pick, no scores, missing figures."""
    bare = [replace(result, scores=()) for result in a_sweep(FINE)]
    holes = [replace(result, scores=result.scores[: number % 3]) for number, result in enumerate(a_sweep(FINE))]
    return {
        "one score": a_report(FINE, "phones", scores=1),
        "two scores": a_report(FINE, "phones", "wer<=base+0.05", scores=2),
        "three scores": a_report(TILTED, "phones", "wer<=base+0.05", scores=3),
        "rules": a_report(RULED, "wer"),
        "no goal": a_report(TILTED, None),
        "no pick": a_report(FINE, "phones", "wer<=0"),
        "no scores": SweepReport({}, {}, tuple(bare), decide(bare, Rule())),
        "holes": SweepReport({}, {}, tuple(holes), decide(holes, a_rule("phones", "wer<=1"))),
        "the ends alone": a_report([BASE, FINETUNED], "phones"),
    }


REPORTS = reports()
each_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


@each_report
def test_the_document_is_json_and_has_no_units(report: SweepReport) -> None:
    text = json.dumps(report.to_json(), allow_nan=False)
    document = json.loads(text)
    assert document["schema"] == 1
    assert "speaker" not in text
    assert '"g1"' not in text
    assert [Cell.from_json(cell) for cell in document["cells"]] == [*report.decision.cells]
    assert report.to_json() == report.to_json()


def test_the_document_has_each_figure_with_its_interval_and_paired_differences() -> None:
    report = REPORTS["three scores"]
    document = report.to_json()
    pick = report.decision.pick
    assert Cell.from_json(document["decision"]["pick"]) == pick
    for row in document["cells"]:
        cell = Cell.from_json(row)
        for name, curve in report.decision.scores.items():
            wanted = {"value": curve.estimates()[cell], "to_base": curve.against(BASE)[cell]}
            found = row["scores"][name]
            assert found["value"] == pytest.approx(wanted["value"].value)
            assert found["to_base"]["value"] == pytest.approx(wanted["to_base"].value)
            if curve.groups:
                assert found["to_base"]["low"] == pytest.approx(wanted["to_base"].low)
            else:
                assert found["to_base"]["low"] is None
        assert row["meets"] == report.decision.meets(cell)
        assert [gate["gate"] for gate in row["gates"]] == ["wer<=base+0.05"]
    shares = [one["share"] for one in document["decision"]["resampling"]["picks"]]
    assert sum(shares) + document["decision"]["resampling"]["none"] == pytest.approx(1)


@each_report
def test_the_csv_has_a_line_for_each_cell_and_score(report: SweepReport) -> None:
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == len(report.results) * max(len(report.decision.scores), 1)
    assert "nan" not in report.to_csv()
    first = [row for row in rows if row["score"] == "phones"]
    values = [float(row["value"]) if row["value"] else math.nan for row in first]
    if "phones" in report.decision.scores:
        assert values == pytest.approx(report.decision.scores["phones"].values.tolist(), nan_ok=True)


@pytest.mark.parametrize("name", ["three scores", "two scores", "no scores"])
def test_the_table_fits_80_columns_and_marks_what_became_of_each_cell(name: str) -> None:
    report = REPORTS[name]
    titles, *rows = report.to_table()
    assert len(rows) == len(report.results)
    assert {len(row) for row in rows} == {len(titles)}
    assert max(map(len, Table(titles, rows).draw().splitlines())) <= 80
    for result, row in zip(report.results, rows, strict=True):
        decision, cell = report.decision, result.cell
        assert ("*" in row[-1]) == (cell == decision.pick)
        assert ("x" in row[-1]) == (not decision.meets(cell))
        assert ("." in row[-1]) == (cell in decision.dominated)


@each_report
def test_a_figure_is_drawn_of_every_sweep_and_is_the_same_each_time(report: SweepReport) -> None:
    assert draw_sweep(report).render(".svg") == draw_sweep(report).render(".svg")


@pytest.mark.parametrize(
    ("kind", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".html", b"<!doctype")]
)
def test_equal_sweeps_have_equal_files_of_every_kind(kind: str, magic: bytes) -> None:
    drawn = draw_sweep(a_report(FINE, "phones")).render(kind)
    assert drawn.startswith(magic)
    assert draw_sweep(a_report(FINE, "phones")).render(kind) == drawn


def test_the_figure_has_its_words_as_text() -> None:
    drawn = ElementTree.fromstring(draw_sweep(REPORTS["three scores"]).render(".svg"))
    texts = {"".join(node.itertext()).strip() for node in drawn.iter("{http://www.w3.org/2000/svg}text")}
    wanted = "alpha|phones (higher is better)|wer (lower is better)|tilt -0.5|tilt 0|tilt 0.5|pick|base|fine-tune"
    assert set(f"{wanted}|Pareto front|95 % interval|gate wer<=base+0.05|hollow: misses a gate".split("|")) <= texts


def test_a_name_with_dollars_is_no_formula() -> None:
    results = [CellResult(cell, (known_only("$\\frac$", cell.alpha),)) for cell in FINE]
    report = SweepReport({}, {}, tuple(results), decide(results, a_rule("$\\frac$", "$\\frac$>=0.1")))
    assert b"frac" in draw_sweep(report).render(".svg")


def test_nothing_to_draw_is_said() -> None:
    results = [CellResult(cell) for cell in FINE]
    report = SweepReport({}, {}, tuple(results), decide(results, Rule()))
    with pytest.raises(UsageError, match="neither scores nor CKA"):
        draw_sweep(report).render(".png")
    assert report.to_table()[0] == ["alpha", ""]
    assert text_plot(report) == ""


class Nesting(HTMLParser):
    """Checks that every tag of a page is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@each_report
def test_the_page_is_well_formed_needs_nothing_else_and_says_what_the_figure_shows(report: SweepReport) -> None:
    page = draw_sweep(report).render(".html").decode()
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    tags = [tag for tag, _ in parser.found]
    assert not {"script", "link", "img"} & set(tags)
    assert tags.count("tr") == len(report.results) + 1
    (svg,) = (attributes for tag, attributes in parser.found if tag == "svg")
    assert svg["role"] == "img"
    assert svg["aria-labelledby"] == "title description"
    described = re.search('<desc id="description">(.*?)</desc>', page)
    assert described is not None
    assert f"{len(report.results)} merges" in described[1]
    assert {"lang": "en"} in [attributes for tag, attributes in parser.found if tag == "html"]
    assert all(attributes["scope"] for tag, attributes in parser.found if tag == "th")
    assert "<b>" not in page


@each_report
def test_the_text_plot_fits_and_is_ascii(report: SweepReport) -> None:
    for width in (80, 50):
        plot = text_plot(report, width)
        assert plot.isascii()
        assert max(map(len, plot.splitlines())) <= width
        assert plot == text_plot(report, width)


def test_the_text_plot_puts_each_cell_where_it_belongs() -> None:
    results = [CellResult(cell, (known_only("phones", cell.alpha * (1 - cell.alpha)),)) for cell in FINE]
    report = SweepReport({}, {}, tuple(results), decide(results, a_rule("phones")))
    lines = text_plot(report, 10 + 41, 11).splitlines()
    assert lines[0] == "phones, higher is better"
    points = {
        (column - 10, row)
        for row, line in enumerate(lines[1:12])
        for column, mark in enumerate(line)
        if mark in "o*" and column >= 10
    }
    assert points == {
        (round(cell.alpha * 40), round(10 * (0.25 - cell.alpha * (1 - cell.alpha)) / 0.25)) for cell in FINE
    }
    assert lines[1][10 + 20] == "*"
    assert lines[1].startswith("  0.250 |")
    assert lines[11].startswith("  0.000 |")


def test_the_text_plot_marks_gates_plateau_and_misses() -> None:
    report = REPORTS["two scores"]
    assert report.decision.plateau is not None
    plot = text_plot(report)
    axis = next(line for line in plot.splitlines() if "+-" in line)
    low, high = (10 + round(alpha * 69) for alpha in report.decision.plateau)
    assert {place for place, mark in enumerate(axis) if mark == "="} == set(range(low, high + 1))
    assert "x misses a gate" in plot
    assert "- gate" in plot
    assert "95 % interval" in plot
