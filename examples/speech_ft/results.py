"""The measurements of a run, and how sure one can be of their differences: a bootstrap over test units and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.speech_ft.measure import PROBES, Counts, unpack
from examples.speech_ft.plan import BASE

DRAWS = 4000
Floats = NDArray[np.float64]


class Run(NamedTuple):
    """The fine-tunes of one model for one pair by one recipe."""

    model: str
    pair: str
    recipe: str


class State(NamedTuple):
    """An encoder that was measured, of each seed: a merge, a checkpoint, a fine-tune or the base."""

    run: Run
    steps: int | None
    alpha: float


class Estimate(NamedTuple):
    """A number and its interval of 95 %."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class Results:
    """What a journal holds."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self._right: dict[State, dict[int, dict[str, Counts]]] = {}
        self._questions: dict[tuple[str, str], dict[str, Counts]] = {}
        for record in records:
            run = Run(record["model"], record["pair"], record["recipe"])
            right = {name: unpack(text) for name, text in record["right"].items()}
            self._right.setdefault(State(run, record["steps"], record["alpha"]), {})[record["seed"]] = right
            if "questions" in record:
                found = {task: unpack(text) for task, text in record["questions"].items()}
                self._questions[record["model"], record["pair"]] = found

    @property
    def states(self) -> list[State]:
        """All that was measured, in the order in which it was."""
        return list(self._right)

    def seeds(self, state: State) -> list[int]:
        """Those of the fine-tunes that were measured so."""
        return sorted(self._right.get(state, {}))

    def units(self, run: Run, task: str) -> int:
        """Clips or utterances of the test."""
        return len(self._questions[run.model, run.pair][task])

    def questions(self, run: Run, task: str) -> int:
        """Crops or frames of the test."""
        return int(self._questions[run.model, run.pair][task].sum())

    def accuracy(self, state: State, name: str) -> float:
        """Mean over seeds, by `task/probe`."""
        asked = self.questions(state.run, name.split("/")[0])
        return float(np.mean([right[name].sum() for right in self._right[state].values()]) / asked / _answers(name))

    def difference(self, left: State, right: State, name: str) -> Estimate:
        """Of accuracies, seed by seed; the base is the same for all seeds."""
        seeds = [seed for seed in self.seeds(left) if right.run.recipe == BASE or seed in self._right.get(right, {})]
        ours, theirs = (
            np.array([each.get(seed, each.get(0))[name] for seed in seeds], float)
            for each in (self._right[left], self._right[right])
        )
        asked = self._questions[left.run.model, left.run.pair][name.split("/")[0]]
        return paired((ours - theirs) / _answers(name), asked)


def _answers(name: str) -> int:
    return PROBES[name.split("/")[1]]


def base_of(run: Run) -> State:
    """The encoder before any fine-tune."""
    return State(run._replace(recipe=BASE), None, 0.0)


@cache
def _unit_weights(units: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(units)
    return generator.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float32)


@cache
def _seed_weights(seeds: int) -> Floats:
    """Of each draw: one seed fewer than there are, so that the variance of their mean is not too small.

    Rao and Wu, JASA 1988.
    """
    if seeds == 1:
        return np.ones((DRAWS, 1))
    drawn = np.random.default_rng(seeds).multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=DRAWS)
    return drawn / (seeds - 1)


def paired(differences: Floats, asked: Sequence[int] | Counts) -> Estimate:
    """The mean difference of right answers, and its interval by a bootstrap over units and, crossed, over seeds.

    Args:
        differences: of right answers, (seeds, units).
        asked: questions of each unit, (units,).
    """
    seeds, units = differences.shape
    weights = _unit_weights(units)
    drawn = (weights @ differences.T.astype(np.float32)) / (weights @ np.asarray(asked, np.float32))[:, None]
    low, high = np.quantile((drawn * _seed_weights(seeds)).sum(axis=1), [0.025, 0.975])
    return Estimate(float(differences.sum() / seeds / np.sum(asked)), float(low), float(high), seeds)
