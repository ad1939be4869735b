"""Nominal 95 % intervals hold the truth in 95 % of simulated sweeps, also of few and unequal speakers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated import World

from speechft_merge.scoring.scores import Better
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell
from speechft_merge.sweep.intervals import FEW, Curve, Estimate

SWEEPS = 1000
WORLDS = {
    "speakers differ": World(),
    "one speaker has ten times what another has": World(unequal=1.0),
    "alpha is good for some speakers and bad for others": World(slopes=1.0, utterances=40, unequal=0.9),
    "errors are rare": World((3.5, 3.9, 4.1, 3.8, 3.2), slopes=0.3, utterances=30),
    "utterances of up to 20 words": World(words=20),
    "alpha changes nothing but luck": World((1.0,) * 5, slopes=0.0),
}


def held(found: dict[Cell, Estimate], truth: np.ndarray, besides: Cell | None = None) -> list[bool]:
    """Whether the intervals hold the truth, but for that of a cell to itself; an interval of width 0 counts."""
    pairs = zip(found.items(), truth, strict=True)
    return [one.low <= true <= one.high for (cell, one), true in pairs if cell != besides and not math.isnan(one.low)]


@pytest.mark.parametrize("speakers", [10, 20, 40])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_93_to_97_of_100_intervals_hold_the_truth(world: World, speakers: int) -> None:
    truth = world.truth()
    to_base, to_finetuned, alone = [], [], []
    for sweep in world.sweeps(SWEEPS, speakers, seed=7):
        to_base += held(sweep.against(BASE), truth - truth[0], BASE)
        to_finetuned += held(sweep.against(FINETUNED), truth - truth[-1], FINETUNED)
        alone += held(sweep.estimates(), truth)
    shares = {"to base": np.mean(to_base), "to finetuned": np.mean(to_finetuned), "alone": np.mean(alone)}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_intervals_of_values_hold_the_truth_too() -> None:
    rng = np.random.default_rng(3)
    cells, counts = (BASE, FINETUNED), rng.integers(1, 40, (SWEEPS, 12))
    speakers = rng.gamma(2.0, 1.0, (SWEEPS, 2, 12))  # of mean 2, both
    noise = rng.normal(0, 1 / np.sqrt(counts[:, None]), speakers.shape)
    found = []
    for amounts, totals in zip((speakers + noise) * counts[:, None], counts.astype(float), strict=True):
        sums = np.broadcast_to(totals, amounts.shape)
        sweep = Curve("loss", Better.LOWER, cells, amounts.sum(1) / sums.sum(1), tuple("abcdefghijkl"), amounts, sums)
        found += held(sweep.against(BASE), np.zeros(2), BASE)
    assert 0.93 <= np.mean(found) <= 0.97


def test_fewer_groups_are_called_rough_because_the_intervals_are() -> None:
    world = WORLDS["errors are rare"]
    truth = world.truth()
    sweeps = {speakers: [*world.sweeps(SWEEPS, speakers, seed=7)] for speakers in (4, FEW)}
    shares = {
        speakers: np.mean([hit for sweep in those for hit in held(sweep.against(BASE), truth - truth[0], BASE)])
        for speakers, those in sweeps.items()
    }
    assert shares[4] < 0.93
    assert shares[FEW] >= 0.93
    assert sweeps[4][0].rough
    assert not sweeps[FEW][0].rough
