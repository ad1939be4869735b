"""Sweeps whose truth is known: speakers differ, in how well a model serves them and in what alpha changes for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from speechft_merge.record.layers import LayerKey
from speechft_merge.scoring.scores import Better, Score, Unit
from speechft_merge.sweep.decision import Decision, Rule, decide
from speechft_merge.sweep.gate import parse_gate
from speechft_merge.sweep.grid import Cell, lay_out
from speechft_merge.sweep.intervals import Curve
from speechft_merge.sweep.report import SweepReport
from speechft_merge.sweep.results import CellResult, LayerFigures

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Where sweeps come from."""

    logits: tuple[float, ...] = (0.4, 0.9, 1.1, 0.8, 0.1)
    """Of a right answer of the average speaker, in the cells by alpha."""
    speakers: float = 0.8
    """Standard deviation of a speaker's logit."""
    slopes: float = 0.6
    """That of what alpha 1 adds to it."""
    utterances: float = 15.0
    """Of a speaker, on average."""
    unequal: float = 0.7
    """Standard deviation of their number's logarithm."""
    words: int = 1
    """Most that an utterance counts for."""
    luck: float = 0.3
    """Share of utterances whose outcome in one cell says nothing about that in another."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(map(Cell, np.linspace(0, 1, len(self.logits)).tolist()))

    def truth(self) -> Floats:
        """The expected score of each cell: of speakers without number."""
        alphas = np.linspace(0, 1, len(self.logits))
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        spread = np.hypot(self.speakers, alphas * self.slopes)
        return sigmoid(np.array(self.logits)[:, None] + spread[:, None] * nodes) @ (weights / weights.sum())

    def sweeps(self, count: int, groups: int, seed: int) -> Iterator[Curve]:
        """Sweeps of this many speakers, as sums over each."""
        rng = np.random.default_rng(seed)
        centre = np.log(self.utterances) - self.unequal**2 / 2
        sizes = np.maximum(1, np.rint(rng.lognormal(centre, self.unequal, (count, groups))))
        alphas = np.linspace(0, 1, len(self.logits))[:, None, None]
        own = rng.normal(0, self.speakers, (count, groups)) + alphas * rng.normal(0, self.slopes, (count, groups))
        right = sigmoid(np.array(self.logits)[:, None, None] + own)
        amounts, totals = np.zeros_like(right), np.zeros((count, groups))
        for number in range(int(sizes.max())):
            words = np.where(number < sizes, rng.integers(1, self.words + 1, sizes.shape), 0)
            shared, fresh = rng.random(sizes.shape), rng.random(right.shape)
            draws = np.where(rng.random(right.shape) < self.luck, fresh, shared)
            amounts += words * (draws < right)
            totals += words
        names = tuple(f"speaker {number}" for number in range(groups))
        for place in range(count):
            own_totals = np.broadcast_to(totals[place], amounts[:, place].shape)
            values = amounts[:, place].sum(1) / own_totals.sum(1)
            yield Curve("phones", Better.HIGHER, self.cells, values, names, amounts[:, place], own_totals)


def sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def a_score(name: str, amounts: Sequence[float], better: Better = Better.HIGHER, groups: int | None = None) -> Score:
    """A score of units that count once each, dealt out to groups; by default each is its own."""
    units = (Unit(f"u{n}", f"g{n % (groups or len(amounts))}", amount) for n, amount in enumerate(amounts))
    return Score.of(name, better, tuple(units))


def known_only(name: str, value: float, better: Better = Better.HIGHER) -> Score:
    """A score of which only the figure is known."""
    return Score(name, better, value)


def features(base: float, finetuned: float) -> tuple[LayerFigures, ...]:
    """Two layers around a mean CKA to the base and to the fine-tune."""
    keys = LayerKey("layers", block=0), LayerKey("layers", block=1)
    return tuple(LayerFigures(key, base + by, finetuned - by, 0.1) for key, by in zip(keys, (0.01, -0.01), strict=True))


def a_sweep(cells: Sequence[Cell], peak: float = 0.35, speakers: int = 24, seed: int = 0) -> list[CellResult]:
    """A sweep with a score that is best at `peak`, and one (lower is better) that only gets worse from the base."""
    rng = np.random.default_rng(seed)
    own, shared = rng.normal(0, 0.5, speakers), rng.random((2, speakers, 12))
    results = []
    for cell in cells:
        draws = np.where(rng.random(shared.shape) < 0.3, rng.random(shared.shape), shared)
        right = sigmoid(0.6 + own - 6 * (cell.alpha - peak) ** 2 - 0.1 * abs(cell.tilt))[:, None] > draws[0]
        wrong = sigmoid(-1.2 - own + 2 * cell.alpha**2)[:, None] > draws[1]
        scores = (
            a_score("phones", right.T.ravel().astype(float).tolist(), groups=speakers),
            a_score("wer", wrong.T.ravel().astype(float).tolist(), Better.LOWER, speakers),
        )
        results.append(CellResult(cell, scores, features(1 - 0.4 * cell.alpha**2, 1 - 0.4 * (1 - cell.alpha) ** 2)))
    return results


TILTED = lay_out([number / 10 for number in range(11)], (-0.5, 0.0, 0.5))


def a_rule(goal: str | None, *gates: str, strict: bool = False) -> Rule:
    return Rule(goal, tuple(map(parse_gate, gates)), strict)


def a_decision(goal: str | None, *gates: str, cells: Sequence[Cell] = TILTED, strict: bool = False) -> Decision:
    return decide(a_sweep(cells), a_rule(goal, *gates, strict=strict))


def a_report(cells: Sequence[Cell], goal: str | None, *gates: str, scores: int = 2) -> SweepReport:
    """A report on a sweep with one to three scores; the third has no units."""
    results = [
        replace(result, scores=(*result.scores, known_only("language-id", 0.9 - result.cell.alpha))[:scores])
        for result in a_sweep(cells)
    ]
    models = {"base": "org/hubert-base", "finetuned": "<b>/tuned"}
    decision = decide(results, a_rule(goal, *gates), {"CKA floor 0.9": Cell(0.5)})
    return SweepReport(models, {"method": "mean"}, tuple(results), decision)
