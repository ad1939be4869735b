"""A sweep end to end on the shipped pair: cells are real merges, shares add up, the pick has its evidence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from speechft_merge.bench import SweepRequest
from speechft_merge.comparing import compare
from speechft_merge.errors import MismatchError, OutputError, ScoreError, TemporaryError, UsageError
from speechft_merge.merging import merge
from speechft_merge.options import MergeOptions
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.record.manifest import read_manifest
from speechft_merge.scoring.command import parse_command_score
from speechft_merge.scoring.function import parse_function_score
from speechft_merge.similarity.probe import BUILT_IN
from speechft_merge.similarity.request import ProbeRequest
from speechft_merge.sweep.decision import Rule
from speechft_merge.sweep.folder import SweepFolder
from speechft_merge.sweep.gate import parse_gate
from speechft_merge.sweep.grid import BASE, FINETUNED, STOCK, Cell, lay_out
from speechft_merge.sweep.results import CellResult
from speechft_merge.sweep.share import Share
from speechft_merge.sweeping import collect, merge_best, sweep, write_report

if TYPE_CHECKING:
    from conftest import Run

PAIR = Path(__file__).parent.parent / "examples/pair"
MODELS = str(PAIR / "base"), str(PAIR / "finetuned")
PROBE = ProbeRequest(seconds=20.0, workers=1)
CELLS = lay_out([0.0, 0.25, 0.5, 1.0], [0.0, 0.5])
DIGEST = (
    'python3 -c \'import sys, zlib; print(zlib.crc32(open(sys.argv[1] + "/model.safetensors", "rb").read()))\' {model}'
)


def results_of(folder: Path) -> dict[Cell, CellResult]:
    kept = SweepFolder(folder)
    return {result.cell: result for result in kept.results(kept.read()[1])}


def comparable(folder: Path) -> dict[Cell, dict[str, Any]]:
    """The results of the cells that are done, without what they took."""
    return {cell: replace(result, seconds={}).to_json() for cell, result in results_of(folder).items()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep by features and by the digest of the weights."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    done = sweep(*MODELS, folder, SweepRequest(CELLS, scorers=[parse_command_score(f"digest={DIGEST}")], probe=PROBE))
    assert (done.cells, done.measured, done.skipped) == (len(CELLS), len(CELLS), 0)
    return folder


@pytest.mark.parametrize("cell", [Cell(0.25), Cell(0.5, 0.5), BASE, FINETUNED], ids=lambda cell: cell.label)
def test_what_is_measured_of_a_cell_is_what_compare_measures_of_its_merge(
    cell: Cell, swept: Path, tmp_path: Path
) -> None:
    rules = ("layers=0.25:0.75",) if cell.tilt else ()
    recipe = Recipe(alpha=cell.alpha, layer_alpha=rules)
    merge(*MODELS, tmp_path / "merged", recipe)
    report = compare(*MODELS, str(tmp_path / "merged"), PROBE)
    found = results_of(swept)[cell]
    expected = [(row.key, row.pairs["base_merged"].cka, row.pairs["finetuned_merged"].cka) for row in report.layers]
    for layer, (key, to_base, to_finetuned) in zip(found.layers, expected, strict=True):
        assert layer.key == key
        assert (layer.cka_base, layer.cka_finetuned) == pytest.approx((to_base, to_finetuned), abs=1e-6)
    moved = [row.drift for row in report.layers]
    if not rules:
        assert [layer.drift for layer in found.layers] == pytest.approx([cell.alpha * one for one in moved], rel=1e-6)


@pytest.mark.parametrize("cell", [Cell(0.25), Cell(0.5, 0.5)], ids=lambda cell: cell.label)
def test_a_command_is_given_the_very_merge(cell: Cell, swept: Path, tmp_path: Path) -> None:
    rules = ("layers=0.25:0.75",) if cell.tilt else ()
    merge(*MODELS, tmp_path / "merged", Recipe(alpha=cell.alpha, layer_alpha=rules))
    (expected,) = parse_command_score(f"digest={DIGEST}").score(Written(tmp_path / "merged"))
    assert results_of(swept)[cell].scores[0].value == expected.value


class Written:
    """A candidate that lies on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def written(self) -> Any:
        from contextlib import nullcontext

        return nullcontext(self.folder)


def test_shares_add_up_to_the_whole_in_any_order(swept: Path, tmp_path: Path) -> None:
    request = SweepRequest(CELLS, scorers=[parse_command_score(f"digest={DIGEST}")], probe=PROBE)
    for index in (2, 0, 1):
        sweep(*MODELS, tmp_path / "out", request, share=Share(index, 3).of)
        if index:
            report = collect(tmp_path / "out", Rule())
            assert {*report.missing} | {one.cell for one in report.results} == {*CELLS}
    assert comparable(tmp_path / "out") == comparable(swept)
    assert collect(tmp_path / "out", Rule()).missing == ()


def test_a_second_run_measures_nothing(swept: Path) -> None:
    request = SweepRequest(CELLS, scorers=[parse_command_score(f"digest={DIGEST}")], probe=PROBE)
    assert sweep(*MODELS, swept, request).measured == 0


@pytest.mark.parametrize("change", [{"probe": None}, {"scorers": []}, {"recipe": Recipe(keep_head=True)}])
def test_another_sweep_is_kept_out_of_the_folder(change: dict[str, Any], swept: Path) -> None:
    request = SweepRequest(CELLS, scorers=[parse_command_score(f"digest={DIGEST}")], probe=PROBE)
    with pytest.raises(OutputError, match="another sweep"):
        sweep(*MODELS, swept, replace(request, **change))


def score_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Any:
    """A scorer by a function in a module of the working directory."""
    (tmp_path / "my_scores.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_scores", raising=False)
    return parse_function_score("my_scores:score")


NEAR = """
import torch
def score(model, processor):
    weight = model.hubert.encoder.layers[0].attention.q_proj.weight
    norm = float(weight.detach().double().norm())
    return [{"id": str(i), "group": str(i // 2), "value": -abs(norm - 21.5) + 0.01 * i} for i in range(20)]
"""


def test_the_pick_is_written_with_its_evidence_and_is_the_merge_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    scorer = score_by(tmp_path, monkeypatch, NEAR)
    request = SweepRequest(CELLS, Recipe(keep_head=True), [scorer], probe=None)
    sweep(*MODELS, tmp_path / "out", request)
    report = collect(tmp_path / "out", Rule("score", (parse_gate("score>=base-10"),)))
    pick = report.decision.pick
    assert pick is not None
    made = merge_best(tmp_path / "out", report.decision, tmp_path / "best")
    assert made.manifest.evidence is not None
    assert made.manifest.evidence["rule"] == "highest score of the merges with score>=base-10"
    assert read_manifest(tmp_path / "best") == made.manifest
    card = ModelCard.load(tmp_path / "best/README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(report.decision.scores["score"].value(pick))
    assert "## Why this alpha" in card.content
    words = [str(tmp_path / "again") if word == str(tmp_path / "best") else word for word in made.manifest.command]
    assert run(*words).code == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("best", "again"))
    assert first == second


MEDDLES = """
def score(model, processor):
    model.train()
    for weight in model.parameters():
        weight.data.zero_()
    return 1.0
"""
MOVES = """
def score(model, processor):
    model.double()
    return 1.0
"""


def test_what_a_function_does_to_the_model_is_undone_for_the_next_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddler = score_by(tmp_path, monkeypatch, MEDDLES)
    (tmp_path / "other.py").write_text(NEAR)
    near = parse_function_score("near=other:score")
    cells = lay_out([0.5])
    for folder, scorers in (("alone", [near]), ("after", [meddler, near])):
        sweep(*MODELS, tmp_path / folder, SweepRequest(cells, Recipe(keep_head=True), scorers, probe=None))
    alone, after = (results_of(tmp_path / folder) for folder in ("alone", "after"))
    assert [alone[cell].scores[0].value for cell in cells] == [after[cell].scores[1].value for cell in cells]


def test_a_function_that_moves_the_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = SweepRequest(CELLS, Recipe(keep_head=True), [score_by(tmp_path, monkeypatch, MOVES)], probe=None)
    with pytest.raises(ScoreError, match="left it with other weights"):
        sweep(*MODELS, tmp_path / "out", request)


def test_models_that_changed_since_the_sweep_are_not_merged(tmp_path: Path, swept: Path) -> None:
    report = collect(swept, Rule("digest"))
    other = tmp_path / "out"
    SweepFolder(other).begin(SweepFolder(swept).read()[0] | {"fingerprints": ["1", "2"]}, CELLS)
    with pytest.raises(MismatchError, match="not the models that were swept"):
        merge_best(other, report.decision, tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_without_a_pick_there_is_nothing_to_merge(swept: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="picked no cell"):
        merge_best(swept, collect(swept, Rule()).decision, tmp_path / "best")


def test_a_score_that_fails_keeps_what_is_done(tmp_path: Path) -> None:
    failing = parse_command_score("size=test $(ls {model} | wc -l) -gt 100 || { echo broken >&2; exit 3; }")
    with pytest.raises(ScoreError, match="broken"):
        sweep(*MODELS, tmp_path / "out", SweepRequest(CELLS, scorers=[failing], probe=None))
    with pytest.raises(TemporaryError, match="none of the 7 cells"):
        collect(tmp_path / "out", Rule())


def test_several_fine_tunes_bring_model_stock_as_a_heuristic(tmp_path: Path) -> None:
    other = tmp_path / "other"
    merge(*MODELS, other, alpha=0.6)
    cells = (*lay_out([0.5]), STOCK)
    sweep(MODELS[0], [MODELS[1], str(other)], tmp_path / "out", SweepRequest(cells, probe=PROBE))
    report = collect(tmp_path / "out", Rule())
    assert report.decision.heuristics == {"model-stock": STOCK}
    merge(MODELS[0], [MODELS[1], str(other)], tmp_path / "stock", Recipe(method="model-stock"))
    expected = compare(MODELS[0], MODELS[1], str(tmp_path / "stock"), PROBE).mean["base_merged"].cka
    assert results_of(tmp_path / "out")[STOCK].cka_base == pytest.approx(expected, abs=1e-6)


def test_a_cka_floor_is_a_heuristic_beside_the_rule(swept: Path) -> None:
    figures = {cell: result.cka_base for cell, result in results_of(swept).items() if cell == Cell(cell.alpha)}
    floor = sorted(figures.values())[1]
    report = collect(swept, Rule("digest"), floor)
    (name,) = report.decision.heuristics
    assert report.decision.heuristics[name].alpha == max(cell.alpha for cell, cka in figures.items() if cka >= floor)
    assert f"{name} takes" in " ".join(report.in_words())
    assert collect(swept, Rule("digest"), 1.5).decision.heuristics == {}


def test_the_report_is_written_whole(swept: Path) -> None:
    report = collect(swept, Rule("digest"))
    assert write_report(report, swept) == []
    document = json.loads((swept / "report.json").read_text())
    assert [Cell.from_json(cell) for cell in document["cells"]] == [*CELLS]
    lines = [json.loads(line) for line in (swept / "cells.jsonl").read_text().splitlines()]
    assert lines == [result.to_json() for result in report.results]
    assert (swept / "report.png").read_bytes().startswith(b"\x89PNG")
    assert MergeOptions().evidence is None


def test_with_several_fine_tunes_alpha_1_is_not_called_the_fine_tune(tmp_path: Path) -> None:
    other = tmp_path / "other"
    merge(*MODELS, other, alpha=0.6)
    size = parse_command_score("size=du -sb {model} | cut -f1")
    sweep(MODELS[0], [MODELS[1], str(other)], tmp_path / "out", SweepRequest(lay_out([]), scorers=[size], probe=None))
    report = collect(tmp_path / "out", Rule("size"))
    assert "the fine-tune" not in " ".join(report.in_words())


def test_model_stock_moves_as_far_as_its_ratios_say(tmp_path: Path) -> None:
    other = shutil.copytree(MODELS[1], tmp_path / "other")
    torch.manual_seed(0)
    weights = load_file(other / "model.safetensors")
    for name, weight in weights.items():
        if ".layers." in name and weight.dim() == 2:  # in another direction than the first
            weight += 0.1 * weight.float().std() * torch.randn(weight.shape)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    models = [MODELS[1], str(other)]
    sweep(MODELS[0], models, tmp_path / "out", SweepRequest((*lay_out([]), STOCK), probe=PROBE))
    made = merge(MODELS[0], models, tmp_path / "stock", Recipe(method="model-stock"))
    found = {layer.key.label: layer.drift for layer in results_of(tmp_path / "out")[STOCK].layers}
    blocks = [row.key.block for row in made.manifest.layers if row.key.block is not None]
    assert len(blocks) == 6
    for block in blocks:
        drifts = [drift for name, drift in made.drifts.items() if f".layers.{block}." in name]
        way = sum(drift.delta * drift.ratio**2 for drift in drifts) / sum(drift.base for drift in drifts)
        assert found[str(block)] == pytest.approx(way**0.5)
        assert any(drift.ratio < 0.99 for drift in drifts)


def test_what_decides_the_figures_makes_another_sweep(tmp_path: Path) -> None:
    models = [shutil.copytree(model, tmp_path / Path(model).name) for model in MODELS]
    script = tmp_path / "score.sh"
    script.write_text("echo 1")

    def request() -> SweepRequest:
        return SweepRequest(lay_out([]), scorers=[parse_command_score(f"one=sh {script} {{model}}")], probe=None)

    sweep(*map(str, models), tmp_path / "out", request())
    sweep(*map(str, models), tmp_path / "out", request())
    script.write_text("echo 2")
    with pytest.raises(OutputError, match="differ in scorers"):
        sweep(*map(str, models), tmp_path / "out", request())
    script.write_text("echo 1")
    (models[1] / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    with pytest.raises(OutputError, match="differ in small files"):
        sweep(*map(str, models), tmp_path / "out", request())


def test_other_audio_makes_another_sweep(tmp_path: Path) -> None:
    clips = sorted(BUILT_IN.glob("*.flac"))
    for path in clips[:6]:
        shutil.copy(path, tmp_path)
    request = SweepRequest(lay_out([]), probe=ProbeRequest(paths=(tmp_path,), seconds=20.0))
    before = request.description
    shutil.copy(clips[7], tmp_path / clips[0].name)
    assert request.description != before


def test_a_cell_scored_on_other_utterances_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
calls = []
def score(model, processor):
    calls.append(1)
    return [{"id": i, "value": 1} for i in range(3 if len(calls) == 2 else 4)]
"""
    request = SweepRequest(lay_out([]), Recipe(keep_head=True), [score_by(tmp_path, monkeypatch, body)], probe=None)
    with pytest.raises(MismatchError, match="other utterances"):
        sweep(*MODELS, tmp_path / "out", request)
    assert [*results_of(tmp_path / "out")] == [BASE]
    sweep(*MODELS, tmp_path / "out", request)
    assert collect(tmp_path / "out", Rule()).missing == ()


def test_a_mistyped_rule_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        sweep(*MODELS, tmp_path / "out", SweepRequest(lay_out([0.5], rules=[("nosuch=0.1",)]), probe=PROBE))
    assert not (tmp_path / "out").exists()


def test_a_merge_that_is_there_without_the_evidence_is_not_taken_for_the_pick(swept: Path, tmp_path: Path) -> None:
    report = collect(swept, Rule("digest"))
    made = merge_best(swept, report.decision, tmp_path / "best")
    assert merge_best(swept, report.decision, tmp_path / "best").already_done
    merge(*MODELS, tmp_path / "plain", Recipe.from_json(made.manifest.recipe))
    with pytest.raises(OutputError, match="other evidence or none"):
        merge_best(swept, report.decision, tmp_path / "plain")


def test_a_sweep_is_decided_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in MODELS:
        shutil.copytree(model, tmp_path / Path(model).name)
    monkeypatch.chdir(tmp_path)
    size = parse_command_score("size=du -sb {model} | cut -f1")
    sweep("base", "finetuned", tmp_path / "out", SweepRequest(lay_out([]), scorers=[size], probe=None))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    report = collect(tmp_path / "out", Rule("size"))
    assert report.models == {"base": "base", "finetuned": "finetuned"}
    assert merge_best(tmp_path / "out", report.decision, Path("best")).manifest.evidence is not None
