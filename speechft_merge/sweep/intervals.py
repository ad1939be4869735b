"""Says how exact the scores of a sweep are, paired over its cells; and resamples them, to try a decision on.

What is left out or resampled is a group (a speaker, a recording), never an utterance: those of one speaker are alike.
Intervals are from the delete-one-group jackknife with Student's t, which on simulated sweeps hold the truth as often
as they claim (`tests/sweep/test_interval_coverage.py`); percentiles of a bootstrap do not, with 10 speakers.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.errors import MismatchError, quote
from speechft_merge.scoring.scores import Better, Score
from speechft_merge.student import t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.results import CellResult

    Floats = npt.NDArray[np.float64]

RESAMPLES, SEED = 4000, 20261127
FEW = 8
"""With fewer groups, intervals of rare errors hold the truth in 93 (7 groups) to 70 % (3) of simulated sweeps."""
FEATURES = ("cka_base", "cka_finetuned")
"""Figures of a cell that may be used like scores; they have no units."""

_BLOCK = 1024
"""Groups whose weights are in memory at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval, nan to nan where none is known."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def half(self) -> float:
        """The greater distance from the figure to an end of its interval."""
        return max(self.high - self.value, self.value - self.low)

    def shifted(self, offset: float, sign: int = 1) -> Estimate:
        """Return sign * (itself + offset)."""
        ends = sorted((sign * (self.low + offset), sign * (self.high + offset)))
        return Estimate(sign * (self.value + offset), *ends)


@dataclass(frozen=True, eq=False)
class Curve:
    """One score over the cells of a sweep."""

    name: str
    better: Better
    cells: tuple[Cell, ...]
    values: Floats
    """(cells,); nan where a cell lacks the score."""
    groups: tuple[str, ...] = ()
    """Empty where no units are known: there are no intervals then."""
    amounts: Floats = field(default_factory=lambda: np.empty((0, 0)))
    """(cells, groups): sums over the units of a group; the value of a cell is its amounts' sum / its totals' sum."""
    totals: Floats = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def rough(self) -> bool:
        """Whether its intervals may be far too narrow, for want of groups."""
        return 0 < len(self.groups) < FEW

    @cached_property
    def rows(self) -> dict[Cell, int]:
        """Cell -> its place in the arrays."""
        return {cell: row for row, cell in enumerate(self.cells)}

    def value(self, cell: Cell) -> float:
        """Return a cell's score; nan if it has none."""
        return float(self.values[self.rows[cell]]) if cell in self.rows else math.nan

    def estimates(self) -> dict[Cell, Estimate]:
        """Return each cell's score with its interval.

        That of a share, of right or wrong answers, is made for its logit: one near 0 or 1 has an uneven interval
        within them, and one of 0 or 1 none.
        """
        half = _half(*self._jackknife())
        if (self.amounts < 0).any() or (self.amounts > self.totals).any():
            return self._by_cell(self.values, self.values - half, self.values + half)
        with np.errstate(divide="ignore", invalid="ignore"):
            logits = np.log(self.values / (1 - self.values))
            half_logit = half / (self.values * (1 - self.values))
            return self._by_cell(self.values, *(1 / (1 + np.exp(-logits + sign * half_logit)) for sign in (1, -1)))

    def against(self, reference: Cell) -> dict[Cell, Estimate]:
        """Return each cell's score minus that of a reference, paired: what is common to both does not widen it.

        If the reference was chosen for its score on these same units, such as the pick, differences to it are a little
        too large.
        """
        if reference not in self.rows:
            return {cell: Estimate(math.nan) for cell in self.cells}
        row = self.rows[reference]
        left_out, effective = self._jackknife()
        half = _half(left_out - left_out[row], np.minimum(effective, effective[row]))
        difference = self.values - self.values[row]
        return self._by_cell(difference, difference - half, difference + half)

    def resampled(self, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
        """Return the scores of the cells in resamples of the groups, (resamples, cells).

        A resample gives each group an exponential weight (the Bayesian bootstrap, Rubin 1981). It follows from the
        group's name alone, so that scores of the same speakers are resampled alike, also if one score lacks some.
        Without units every resample is the sweep itself.
        """
        if not self.groups:
            return np.broadcast_to(self.values, (resamples, len(self.cells)))
        above, below = np.zeros((2, resamples, len(self.cells)))
        for start in range(0, len(self.groups), _BLOCK):
            block = slice(start, start + _BLOCK)
            weights = weigh(self.groups[block], resamples, seed)
            above += weights @ self.amounts[:, block].T
            below += weights @ self.totals[:, block].T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.round(above / below, 12)  # equal cells are equal, however the products were summed

    def _jackknife(self) -> tuple[Floats, Floats]:
        """Return the scores without each group, (cells, groups), and how many equal groups a cell's count as, (cells,).

        The latter is Kish's: (sum of totals)^2 / sum of totals^2.
        """
        if len(self.groups) < 2:
            return np.full((len(self.cells), 1), math.nan), np.ones(len(self.cells))
        amount, total = self.amounts.sum(1, keepdims=True), self.totals.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (amount - self.amounts) / (total - self.totals), total[:, 0] ** 2 / (self.totals**2).sum(1)

    def _by_cell(self, *columns: Floats) -> dict[Cell, Estimate]:
        return {cell: Estimate(*row) for cell, row in zip(self.cells, np.stack(columns, 1).tolist(), strict=True)}


def curves(results: Sequence[CellResult]) -> dict[str, Curve]:
    """Return each score over all cells, by name in the order of their first appearance.

    Raises:
        MismatchError: a cell was scored on other units than the first, usually the base.
    """
    found = {score.name: score.better for result in results for score in result.scores}
    return {name: _curve(results, name, better) for name, better in found.items()}


def feature_curves(results: Sequence[CellResult]) -> dict[str, Curve]:
    """Return the mean CKA to the base and to the fine-tune over all cells; empty where features were not compared."""
    cells = tuple(result.cell for result in results)
    figures = {name: np.array([getattr(result, name) for result in results], np.float64) for name in FEATURES}
    return {
        name: Curve(name, Better.HIGHER, cells, values) for name, values in figures.items() if np.isfinite(values).any()
    }


def weigh(groups: Sequence[str], resamples: int, seed: int) -> Floats:
    """Return the weights of groups, (resamples, groups); each group's follow from its name and the seed."""
    weights = np.empty((resamples, len(groups)))
    for column, group in enumerate(groups):
        digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()
        own = np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])
        weights[:, column] = own.standard_exponential(resamples)
    return weights


def _curve(results: Sequence[CellResult], name: str, better: Better) -> Curve:
    scores = [next((score for score in result.scores if score.name == name), None) for result in results]
    cells = tuple(result.cell for result in results)
    values = np.array([math.nan if score is None else score.value for score in scores], np.float64)
    known = {cell: score for cell, score in zip(cells, scores, strict=True) if score is not None}
    if not any(score.units for score in known.values()):
        return Curve(name, better, cells, values)
    _check_units(name, known)
    groups = tuple(sorted({unit.group for unit in next(iter(known.values())).units}))
    place = {group: column for column, group in enumerate(groups)}
    amounts, totals = np.full((2, len(cells), len(groups)), math.nan)
    for row, score in enumerate(scores):
        if score is not None:
            columns = [place[unit.group] for unit in score.units]
            amounts[row] = np.bincount(columns, [unit.amount for unit in score.units], len(groups))
            totals[row] = np.bincount(columns, [unit.total for unit in score.units], len(groups))
    return Curve(name, better, cells, values, groups, amounts, totals)


def _check_units(name: str, scores: dict[Cell, Score]) -> None:
    """Check that all cells were scored on the same units, in whatever order."""
    (first, reference), *others = scores.items()
    wanted = Counter((unit.id, unit.group) for unit in reference.units)
    for cell, score in others:
        found = Counter((unit.id, unit.group) for unit in score.units)
        if found != wanted:
            differ = ", ".join(quote(identity) for identity, _ in sorted((found - wanted) + (wanted - found))[:3])
            raise MismatchError(
                f"score {quote(name)} of cell {cell.label} is of other utterances than that of cell {first.label}",
                found=f"{found.total()} for {wanted.total()}, which differ in {differ}",
                hint="count every utterance for every model, in the same group, as wrong if need be",
            )


def _half(left_out: Floats, effective: Floats) -> Floats:
    """Return half the widths of 95 % intervals, (cells,).

    Args:
        left_out: figures without each group, (cells, groups).
        effective: how many groups of equal size they count as, (cells,); less one, the degrees of freedom of t
            (Carter, Schnepel & Steigerwald 2017).
    """
    count = left_out.shape[1]
    spread = ((left_out - left_out.mean(1, keepdims=True)) ** 2).sum(1)
    half: Floats = t_quantile(np.maximum(effective - 1, 1.0)) * np.sqrt((count - 1) / count * spread)
    return half
