"""The experiment on choosing alpha: its arithmetic on made-up fine-tunes, and its page against its journal."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the examples are no part of the package
rules: Any = import_module("examples.choosing_alpha.rules")
probe: Any = import_module("examples.choosing_alpha.probe")
report: Any = import_module("examples.choosing_alpha.report")

ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
ENCODERS = ("tiny", "base", "hubert")


def made_up(encoder: str, task: str, seed: int, edge: int, cka: tuple[float, ...] | None = None) -> Any:
    """A fine-tune whose gate breaks above the alpha with the index `edge`, and by default CKA falls below 0.8 there."""
    likeness = tuple(1 - 0.04 * at if at <= edge else 0.7 - 0.05 * at for at in range(len(ALPHAS)))
    others = tuple(0.6 if at <= edge else 0.5 for at in range(len(ALPHAS)))
    own = tuple(0.1 + 0.8 * alpha for alpha in ALPHAS)
    return rules.Case(encoder, task, seed, ALPHAS, cka or likeness, own, (others, others), (others, others), own)


@pytest.fixture
def cases() -> list[Any]:
    """Nine pairs of encoder and task, whose gates break at different alphas."""
    return [
        made_up(encoder, task, seed, edge=1 + (i + 2 * j + seed) % 4)
        for i, encoder in enumerate(ENCODERS)
        for j, task in enumerate(rules.TASKS)
        for seed in range(3)
    ]


def test_a_rule_whose_cka_falls_where_the_gate_breaks_has_no_regret_and_holds(cases: list[Any]) -> None:
    picks = [rules.pick(case, cases, rules.gated, "encoder") for case in cases]
    assert all(chosen[report.RULE] == chosen["oracle"] for chosen in picks)
    assert report.regrets(cases, picks, rules.gated)[report.RULE].max() == 0
    holds, told = report.verdict(cases)
    assert holds
    assert [line.split(":")[0] for line in told] == ["holds"] * 3


def test_a_cka_that_knows_nothing_of_the_gate_fails(cases: list[Any]) -> None:
    blind = [replace(case, cka=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5)) for case in cases]
    holds, told = report.verdict(blind)
    assert not holds
    assert told[0].startswith("FAILS")


def test_utility_and_regret_are_those_computed_by_hand() -> None:
    found = replace(made_up("tiny", "speaker", 0, edge=1), alphas=(0.0, 0.25, 1.0), cka=(1.0, 0.9, 0.5))
    case = replace(found, own=(0.2, 0.4, 0.6), others=((0.5, 0.495, 0.4),) * 2)
    assert case.learnt == pytest.approx([0, 0.5, 1])
    assert rules.gated(case) == pytest.approx([0, 0.5, 0])
    assert rules.balanced(case) == pytest.approx([0.5, (0.5 + 0.99) / 2, (1 + 0.8) / 2])
    lost = report.regrets([case], [{"low": 0, "middle": 1, "high": 2}], rules.gated)
    assert [lost[rule].item() for rule in ("low", "middle", "high")] == pytest.approx([0.5, 0, 0.5])


def test_the_gate_takes_the_mean_of_the_other_tasks() -> None:
    one = replace(made_up("tiny", "speaker", 0, edge=1), others=((0.5, 0.47), (0.5, 0.515)))
    assert one.changes == pytest.approx([0, -0.0075])
    assert one.holds(1)


def test_the_rule_stops_where_cka_first_falls_below_its_threshold() -> None:
    case = made_up("tiny", "speaker", 0, edge=2, cka=(1.0, 0.9, 0.7, 0.85, 0.6, 0.5))
    assert [rules.above(case, threshold) for threshold in (0.95, 0.8, 0.7, 0.0)] == [0, 1, 3, 5]


@pytest.mark.parametrize("utility", ["gated", "balanced"])
def test_what_is_fitted_is_the_best_of_all_by_enumeration(cases: list[Any], utility: str) -> None:
    worth = getattr(rules, utility)
    values = np.array([worth(case) for case in cases])
    rows = np.arange(len(cases))
    by_threshold = {t: values[rows, [rules.above(case, t) for case in cases]].mean() for t in rules.THRESHOLDS}
    best = max(by_threshold.values())
    assert rules.best_threshold(cases, worth) == max(t for t, found in by_threshold.items() if found > best - 1e-9)
    assert rules.best_alpha(cases, worth) == int(values.mean(axis=0).argmax())


@pytest.mark.parametrize("left_out", ["encoder", "task"])
def test_what_is_left_out_has_no_part_in_the_choice(cases: list[Any], left_out: str) -> None:
    mine = cases[0]
    others = [case for case in cases if getattr(case, left_out) != getattr(mine, left_out)]
    rotten = [
        case if case in others else replace(case, own=case.own[::-1], others=tuple(o[::-1] for o in case.others))
        for case in cases
    ]
    before, after = (rules.pick(mine, found, rules.gated, left_out) for found in (cases, rotten))
    assert before == after


def test_the_bootstrap_draws_whole_pairs_of_encoder_and_task(cases: list[Any]) -> None:
    weights = report.draw_clusters(cases, 200)
    assert weights.shape == (200, 27)
    together = weights.reshape(200, 9, 3)
    assert (together == together[:, :, :1]).all()
    assert (weights.sum(axis=1) == 27).all()
    assert len(np.unique(weights, axis=0)) > 190


def test_a_fine_tune_that_is_not_measured_to_its_end_is_left_out() -> None:
    rows = [
        {"encoder": "tiny", "task": "phones", "seed": seed, "alpha": alpha, "cka": 1 - alpha / 2, "own": alpha,
         "speaker_all": 0.5, "language_all": 0.6, "phones_all": 0.7, "speaker_last": 0.1, "language_last": 0.2}
        for seed, alphas in ((0, (1.0, 0.0, 0.25)), (1, (0.0, 0.25)))
        for alpha in alphas
    ]  # fmt: skip
    (case,) = rules.read_cases(rows)
    assert (case.seed, case.alphas, case.cka) == (0, (0.0, 0.25, 1.0), (1.0, 0.875, 0.5))
    assert (case.others, case.last, case.fresh) == (((0.5,) * 3, (0.6,) * 3), ((0.1,) * 3, (0.2,) * 3), (0.7,) * 3)


def test_the_page_shows_what_the_report_makes_of_the_journal() -> None:
    page = (ROOT / "examples/choosing_alpha/README.md").read_text()
    records = [json.loads(line) for line in report.RESULTS.read_text().splitlines()]
    cases = rules.read_cases(records)
    assert len(cases) == 27
    assert report.results(cases) in page


@pytest.mark.parametrize("width", [10, 300])
def test_a_probe_is_ridge_regression_on_the_other_folds(width: int) -> None:
    generator = np.random.default_rng(0)
    labels, folds = generator.integers(0, 5, size=200), np.arange(200) % 4
    features = generator.standard_normal((200, width)) * 3 + 1
    features[:, :5] += np.eye(5)[labels] * 9
    scaled = (features - features.mean(axis=0)) / features.std(axis=0, ddof=1)
    right = 0
    for fold in range(4):
        x, targets = scaled[folds != fold], np.eye(5)[labels[folds != fold]]
        weights = np.linalg.inv(x.T @ x + 0.1 * len(x) * np.eye(width)) @ x.T @ (targets - targets.mean(axis=0))
        scores = scaled[folds == fold] @ weights + targets.mean(axis=0)
        right += int((scores.argmax(axis=1) == labels[folds == fold]).sum())
    tensors = torch.from_numpy(features).float(), torch.from_numpy(labels), torch.from_numpy(folds)
    assert probe.probe_accuracy(*tensors) == right / 200
    assert 0.5 < right / 200 < 1
