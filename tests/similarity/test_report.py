"""What is made of the figures: document, table, words, drawings, and the section of the model card."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from speechft_merge.errors import UsageError
from speechft_merge.recipe import Recipe
from speechft_merge.record import card
from speechft_merge.record.layers import INPUT, LayerKey
from speechft_merge.similarity.beside_output import make_section, put_beside
from speechft_merge.similarity.caption import caption
from speechft_merge.similarity.floor import Floor
from speechft_merge.similarity.measure import LayerResult, Similarity
from speechft_merge.similarity.plot import draw_grids, draw_lines
from speechft_merge.similarity.probe import ProbeRecord
from speechft_merge.similarity.report import Report, make_rows, mean_by_pair, with_error
from speechft_merge.similarity.request import figure_kind

if TYPE_CHECKING:
    from collections.abc import Sequence


BLOCK_0 = LayerKey("layers", block=0)


def similarity(cka: float, se: float = 0.01) -> Similarity:
    return Similarity(cka, se, cka - 2 * se, cka + 2 * se, cka, cka, cka, cka)


def a_report(
    base_finetuned: Sequence[float] = (0.9, 0.5, 0.3), base_merged: Sequence[float] = (0.99, 0.9, 0.8), **told: Any
) -> Report:
    results = {}
    for number, (moved, merged) in enumerate(zip(base_finetuned, base_merged, strict=True)):
        pairs = {(0, 1): similarity(moved), (0, 2): similarity(merged), (1, 2): similarity(0.7)}
        around = torch.tensor([0.98, 1.0, 1.02], dtype=torch.float64)
        key = LayerKey("layers", block=number - 1) if number else INPUT
        results[key] = LayerResult(pairs, {pair: found.cka * around for pair, found in pairs.items()})
    defaults: dict[str, Any] = {
        "models": {"base": "a/base", "finetuned": "<b>", "merged": "merged"},
        "probe": ProbeRecord(
            "built-in", "ab" * 32, 24, 50.0, 16_000, {"/home/me/broken.wav": "is empty"}, {"anna": 20, "ben": 4},
            "voice", 0
        ),
        "estimator": "group", "utterances": 24, "groups": 2, "grouped_by": "voice", "frames": 2400, "grids": {},
    }  # fmt: skip
    layers = make_rows(results, {INPUT: 0.1, BLOCK_0: 0.2}, [])
    return Report(layers=layers, mean=mean_by_pair(results), **(defaults | told))


def test_what_is_farther_from_the_base_than_the_fine_tune_is_asked_about() -> None:
    back = a_report(base_merged=(0.5, 0.4, 0.2)).in_words()[1]
    assert "is it a merge of these two?" in back
    assert "%" not in back


def test_what_is_not_defined_is_null_in_the_document_and_empty_in_the_table() -> None:
    report = a_report((0.9, math.nan, 0.3))
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["layers"][1]["base_finetuned"]["cka"] is None
    assert [layer["drift"] for layer in document["layers"]] == [0.1, 0.2, None]
    assert [layer["layer"] for layer in document["layers"]] == [None, 0, 1]
    assert [layer["part"] for layer in document["layers"]] == ["input", "layers", "layers"]
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == 9
    assert [(row["layer"], row["part"]) for row in rows[::3]] == [("", "input"), ("0", "layers"), ("1", "layers")]
    assert [row["cka"] for row in rows if row["pair"] == "base_finetuned"] == ["0.9", "", "0.3"]


def test_the_mean_is_over_layers_where_there_is_a_value_and_has_an_error_of_its_own() -> None:
    mean = a_report().mean["base_finetuned"]
    assert mean.cka == pytest.approx((0.9 + 0.5 + 0.3) / 3)
    replicates = [mean.cka * factor for factor in (0.98, 1.0, 1.02)]
    spread = sum((value - mean.cka) ** 2 for value in replicates)
    assert mean.se == pytest.approx(math.sqrt(2 / 3 * spread))
    assert mean.high - mean.cka == mean.cka - mean.low == pytest.approx(4.303 * mean.se)  # t of 2 degrees of freedom
    assert a_report((0.9, math.nan, 0.3)).mean["base_finetuned"].cka == pytest.approx(0.6)


def test_the_words_name_the_layer_that_moved_most_and_how_much_came_back() -> None:
    moved, back = a_report().in_words()
    assert "most in layer 1:" in moved
    assert "most in the input of the first block:" in a_report((0.3, 0.5, 0.9)).in_words()[0]
    share = (sum((0.99, 0.9, 0.8)) - sum((0.9, 0.5, 0.3))) / (3 - sum((0.9, 0.5, 0.3)))
    assert f"{share:.0%} of the way back" in back
    assert "not how well they serve a task" in back


@pytest.mark.parametrize(
    ("values", "said"), [((1.0, 0.9999, 0.9995), "hardly changed"), ((math.nan,) * 3, "do not vary enough")]
)
def test_the_words_do_not_claim_what_was_not_found(values: Sequence[float], said: str) -> None:
    assert said in a_report(values, values).in_words()[0]


def test_the_table_has_one_name_and_one_drift_for_each_layer() -> None:
    titles, *rows = a_report().to_table()
    assert titles == ["layer", "drift", "base vs fine-tuned", "base vs merged", "fine-tuned vs merged"]
    assert [row[:2] for row in rows] == [["input", "0.1000"], ["0", "0.2000"], ["1", "-"], ["mean", "-"]]


def test_the_error_bar_is_half_of_the_interval_and_not_shown_where_there_is_none() -> None:
    assert with_error(similarity(0.51239, 0.0349)) == "0.512 ±0.070"
    assert with_error(similarity(0.51239, math.nan)) == "0.512"
    assert with_error(similarity(math.nan, math.nan)) == "-"
    assert with_error(similarity(-0.0002, math.nan)) == "0.000"


def test_the_floor_has_three_figures_in_the_document_and_in_the_csv() -> None:
    report = a_report()
    layers = tuple(replace(layer, null=Floor(0.01, 0.02, 0.1)) for layer in report.layers)
    report = replace(report, layers=layers)
    floor = {"null": 0.01, "null_sd": 0.02, "null_aligned": 0.1}
    assert all(layer.items() >= floor.items() for layer in report.to_json()["layers"])
    rows = [*csv.DictReader(io.StringIO(report.to_csv()))]
    assert all({name: float(row[name]) for name in floor} == floor for row in rows)
    assert [row[-1] for row in report.to_table()] == ["floor", "0.010", "0.010", "0.010", "-"]
    assert "floor (mismatched)" in draw_lines(report, ".svg").decode()


def test_a_floor_below_a_zoomed_axis_is_named_and_does_not_undo_the_zoom() -> None:
    report = a_report((0.99, 0.98, 0.97), (0.999, 0.998, 0.997))
    pairs = [
        {pair: found for pair, found in layer.pairs.items() if pair != "finetuned_merged"} for layer in report.layers
    ]
    layers = tuple(
        replace(layer, pairs=pair, null=Floor(0.01, 0.02, 0.1))
        for layer, pair in zip(report.layers, pairs, strict=True)
    )
    mean = {pair: found for pair, found in report.mean.items() if pair != "finetuned_merged"}
    drawn = draw_lines(replace(report, layers=layers, mean=mean), ".svg").decode()
    assert "floor: below this axis" in drawn
    assert "not 0)" in drawn


def with_decoder(report: Report) -> Report:
    """The layers of an encoder, and the same of a decoder."""
    decoder = [replace(layer, key=replace(layer.key, stack="decoder")) for layer in report.layers]
    return replace(report, layers=(*report.layers, *decoder))


def texts_of(svg: bytes) -> set[str]:
    """What is written in a figure."""
    nodes = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return {"".join(node.itertext()).strip() for node in nodes}


def upright(svg: bytes) -> set[str]:
    return {*re.findall(r"rotate\(-90[^>]*>([^<]*)</text>", svg.decode())}


def test_labels_that_are_wider_than_a_block_stand_upright() -> None:
    report = with_decoder(a_report())
    grids = {"base_finetuned": [[1.0] * 6] * 6}
    assert {"input", "decoder.input", "decoder.0"} <= upright(draw_grids(replace(report, grids=grids), ".svg"))
    assert {"0", "input"} & upright(draw_lines(report, ".svg")) == {"input"}


def test_encoder_and_decoder_are_named_and_not_joined_by_a_line() -> None:
    report = with_decoder(a_report())
    assert {"encoder", "decoder"} <= texts_of(draw_lines(report, ".svg"))
    assert not {"encoder", "decoder"} & texts_of(draw_lines(a_report(), ".svg"))
    axes = report.plot()
    assert [len(line.get_xdata()) for line in axes.lines] == [3] * 6
    assert len(axes.get_legend().get_texts()) == 3
    pyplot.close(axes.figure)


def test_a_plot_goes_into_the_axes_of_a_figure_of_ones_own() -> None:
    axes = Figure().subplots()
    assert a_report().plot(ax=axes) is axes
    values = {line.get_label(): [*line.get_ydata()] for line in axes.lines}
    assert values == {
        "base vs fine-tuned": [0.9, 0.5, 0.3], "base vs merged": [0.99, 0.9, 0.8], "fine-tuned vs merged": [0.7] * 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "moved", [(1.0, 0.99, 0.978), (1.0, 1.0, 1.0), (1.0, 0.9, 0.85), (1.0, 0.9, 0.8), (0.9, 0.1, -0.1)]
)
def test_the_axis_begins_at_0_unless_all_are_alike_and_then_it_says_so(moved: Sequence[float]) -> None:
    report = a_report(moved)
    layers = [
        replace(layer, pairs={"base_finetuned": similarity(value, 0.0)})
        for layer, value in zip(report.layers, moved, strict=True)
    ]
    mean = {"base_finetuned": report.mean["base_finetuned"]}
    axes = replace(report, layers=tuple(layers), mean=mean).plot(ax=Figure().subplots())
    start, end = axes.get_ylim()
    assert start <= min(moved)
    assert end > 1
    assert (start > 0) == ("not 0" in axes.get_ylabel()) == (min(moved) > 0.8)
    if min(moved) == 0.978:
        assert start == pytest.approx(0.975)
        assert "(axis from 0.975, not 0)" in axes.get_ylabel()


def test_the_caption_names_the_models_the_alpha_and_on_what_was_measured() -> None:
    models = {"base": "facebook/hubert@" + "0123456789" * 4, "finetuned": f"/home/me/{'long' * 20}", "merged": "m"}
    recipe = Recipe(alpha=0.5, layer_alpha=("cnn=0", "0=0.1", "1=0.2", "2=0.3", "3=1")).to_json()
    told = caption(replace(a_report(), models=models, recipe=recipe))
    assert told == (
        "base: facebook/hubert@0123456; fine-tuned: longlonglonglongl…onglonglonglong; merged at alpha 0.5, cnn=0.0, "
        "0=0.1, 1=0.2 and 2 more rules. CKA (estimator group) on the built-in probe of 50 s, 24 clips of 2 groups."
    ).replace("longlonglonglongl…onglonglonglong", f"{'long' * 4}l…g{'long' * 4}")
    assert caption(a_report()).startswith("base: a/base; fine-tuned: <b>; merged: merged.")
    names = " ".join(sorted(texts_of(draw_lines(replace(a_report(), models=models, recipe=recipe), ".svg"))))
    assert "merged at alpha 0.5" in names


def test_a_figure_tells_in_words_what_it_shows_in_every_kind_of_file() -> None:
    described = (
        "CKA by layer. Base vs fine-tuned: first 0.900 (layer input), last 0.300 (layer 1), mean 0.567. Base vs "
        "merged: first 0.990 (layer input), last 0.800 (layer 1), mean 0.897."
    )
    svg = draw_lines(a_report(), ".svg")
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    ids = {node.attrib["id"]: node.text for tag in ("title", "desc") for node in root.iter(name + tag)}
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"].split() == ["title", "description"] == [*ids]
    assert ids["title"] == "CKA by layer"
    assert str(ids["description"]).startswith(described)
    assert described in draw_lines(a_report(), ".html").decode()
    assert described.encode() in draw_lines(a_report(), ".png")
    assert f"![{described}" in make_section(a_report())


def test_names_in_any_script_or_with_dollars_are_drawn_without_a_word() -> None:
    models = {"base": "$\\frac$", "finetuned": "音声 <&>", "merged": "\x1b[31m"}
    report = replace(a_report(), models=models)
    assert "\x1b" not in draw_lines(report, ".html").decode()
    assert any("$\\frac$" in text and "音声 <&>" in text for text in texts_of(draw_lines(report, ".svg")))
    assert draw_lines(report, ".png").startswith(b"\x89PNG")


def test_what_the_error_bars_are_is_said_wherever_they_are_shown() -> None:
    said = "24 clips of 2 groups (by voice), 2400 frames; ± is half a 95 % interval over the groups"
    assert a_report().of_what() == said
    assert said in draw_lines(a_report(), ".html").decode()
    assert said in make_section(a_report())


@pytest.mark.parametrize(
    ("kind", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".html", b"<!doctype")]
)
def test_figures_are_drawn_in_every_kind_and_are_the_same_each_time(kind: str, magic: bytes) -> None:
    report = replace(a_report(), grids={"base_finetuned": [[1.0, 0.5], [0.5, math.nan]]})
    for draw in (draw_lines, draw_grids):
        drawn = draw(report, kind)
        assert drawn.startswith(magic)
        assert draw(report, kind) == drawn


def test_the_figure_has_its_words_as_text_and_a_line_for_each_pair() -> None:
    drawn = ElementTree.fromstring(draw_lines(a_report(), ".svg"))
    texts = {"".join(node.itertext()).strip() for node in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"layer", "input", "0", "1", "CKA", "base vs fine-tuned", "base vs merged", "fine-tuned vs merged"} <= texts


def test_a_figure_of_many_layers_names_the_ends_and_some_of_the_blocks_between() -> None:
    report = a_report((0.9,) * 26, (0.9,) * 26)
    layers = (*report.layers[:-1], replace(report.layers[-1], key=LayerKey("final_norm")))
    drawn = ElementTree.fromstring(draw_lines(replace(report, layers=layers), ".svg"))
    texts = {"".join(node.itertext()).strip() for node in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"input", "2", "4", "22", "final_norm"} <= texts
    assert not {"0", "1", "3", "23", "24"} & texts


def test_the_page_needs_nothing_else_and_escapes_names() -> None:
    page = draw_lines(a_report(), ".html").decode()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert page.count("<tr>") == 5


def test_a_figure_of_another_kind_is_refused_before_anything_is_done() -> None:
    with pytest.raises(UsageError, match=r"end its name in one of \.png, \.svg, \.pdf, \.html"):
        figure_kind(Path("figure.bmp"))


def test_a_card_gets_one_section_however_often_it_is_made(tmp_path: Path) -> None:
    (tmp_path / card.NAME).write_text("---\ntags: []\n---\n\n# Title\n\nMine.\n\nMade by speechft-merge:\n\nrest\n")
    put_beside(tmp_path, a_report())
    put_beside(tmp_path, a_report((0.9, 0.5, 0.1)))
    text = (tmp_path / card.NAME).read_text()
    assert text.count(card.SECTION) == 1
    assert text.index("Mine.") < text.index(card.SECTION) < text.index("Made by speechft-merge:\n\nrest")
    assert "| 1 | - | 0.100 ±0.020 |" in text
    assert "| 1 | - | 0.300" not in text
    assert (tmp_path / "similarity.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "similarity.json").read_text())
    assert document["models"]["merged"] == tmp_path.name
    assert document["probe"]["skipped"] == {"broken.wav": "is empty"}
    assert document["probe"]["groups"] == {"1": 20, "2": 4}, "no names of people"


def test_a_card_that_its_owner_rewrote_keeps_every_word(tmp_path: Path) -> None:
    (tmp_path / card.NAME).write_text("# Mine\n\nall mine\n")
    put_beside(tmp_path, a_report())
    text = (tmp_path / card.NAME).read_text()
    assert text.startswith("# Mine\n\nall mine\n\n" + card.SECTION)
    (tmp_path / card.NAME).write_text(text + "\n## Thanks\n\nto all\n")
    put_beside(tmp_path, a_report())
    again = (tmp_path / card.NAME).read_text()
    assert again.count(card.SECTION) == 1
    assert again.endswith("## Thanks\n\nto all\n")
