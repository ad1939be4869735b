"""Nominal 95 % intervals of CKA hold the truth in 95 % of simulated probes, of few and unequal voices too."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from hierarchy import Draws, World, by_voice, estimates

from speechft_merge.similarity.cka import interval
from speechft_merge.similarity.measure import measure_kept

WORLDS = {
    "voices differ": World(),
    "some voices have ten times as many clips": World(unequal=0.9),
    "features are alike": World(alike=0.97),
    "few dimensions matter": World(spread=2.0),
    "tails are long": World(long_tails=True),
}


def held(draws: Draws, truth: float, voices: bool = True) -> float:
    """Share of the intervals that hold the truth."""
    found = zip(*estimates(draws, voices), strict=True)
    ends = [interval(float(value), torch.from_numpy(without))[1:] for value, without in found]
    return float(np.mean([low <= truth <= high for low, high in ends]))


def margin(probes: int) -> float:
    """Two standard deviations of a share of so many."""
    return 2 * math.sqrt(0.05 * 0.95 / probes)


@pytest.mark.parametrize(("voices", "probes"), [(10, 400), (20, 200), (40, 100)])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_93_to_97_of_100_intervals_hold_the_truth(world: World, voices: int, probes: int) -> None:
    share = held(world.draw(probes, voices, seed=3), world.truth)
    assert 0.93 - margin(probes) <= share <= 0.97 + margin(probes)


@pytest.mark.parametrize("world", [*WORLDS.values(), World(alike=0.0), World(spread=0.3, width=16)])
def test_of_six_voices_and_of_unrelated_features_intervals_are_too_wide_at_most(world: World) -> None:
    assert held(world.draw(300, 6, seed=4), world.truth) >= 0.93 - margin(300)


def test_clips_of_a_few_voices_are_no_units() -> None:
    """Why voices are: their clips are alike, so the figure is too high, and its error bar says that it is certain."""
    world = World(voices=0.6, spread=0.3, width=16)
    draws = world.draw(100, 8, seed=5)
    draws = Draws(draws.x, draws.y, np.full_like(draws.clips, draws.x.shape[2]))
    assert held(draws, world.truth, voices=False) < 0.5
    assert held(draws, world.truth) > 0.9
    assert np.mean(estimates(draws, voices=False)[0]) > world.truth + 0.1
    assert np.mean(estimates(draws)[0]) == pytest.approx(world.truth, abs=0.02)


def test_the_figures_of_the_simulation_are_those_of_the_package_and_of_the_definition() -> None:
    draws = World(unequal=0.9).draw(2, 6, seed=6)
    found, without = estimates(draws)
    for voices, value, others in zip(by_voice(draws), found, without, strict=True):
        layer = [[torch.from_numpy(frames) for frames in voice] for voice in voices]
        (ours,) = measure_kept([layer], "group")
        assert ours.pairs[0, 1].cka == pytest.approx(value, abs=1e-6)
        assert ours.replicates[0, 1].tolist() == pytest.approx(others.tolist(), abs=1e-6)
        assert value == pytest.approx(oracles.ratio(oracles.hsic_of_groups, *zip(*voices, strict=True)), abs=1e-9)
        low, high = ours.pairs[0, 1].low, ours.pairs[0, 1].high
        assert (high - value) / ours.pairs[0, 1].se == pytest.approx(2.571, abs=1e-3)  # t of 5 degrees of freedom
        assert (low + high) / 2 == pytest.approx(value, abs=1e-6)
