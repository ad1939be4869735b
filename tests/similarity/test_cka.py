"""The mathematics of CKA, against definitions written out with whole Gram matrices in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import oracles
import pytest
import rsatoolbox
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.choices import ESTIMATORS
from speechft_merge.similarity.cka import (
    Cross,
    LeaveOneOut,
    Representation,
    cka,
    hsic,
    mean_cosine,
    procrustes,
    replicates,
    standard_error,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Groups = list["NDArray[Any]"]


class Sums:
    """Two representations, summed group by group."""

    def __init__(self, xs: Sequence[NDArray[Any]], ys: Sequence[NDArray[Any]]) -> None:
        self.x, self.y = Representation(), Representation()
        self.crosses = Cross(self.x, self.y), Cross(self.x, self.x), Cross(self.y, self.y)
        self.shifted = []
        for x, y in zip(xs, ys, strict=True):
            ours, theirs = self.x.add(torch.from_numpy(x)), self.y.add(torch.from_numpy(y))
            self.shifted.append(((ours, theirs), (ours, ours), (theirs, theirs)))
            for cross, pair in zip(self.crosses, self.shifted[-1], strict=True):
                cross.add(*pair)

    def cka(self, estimator: Any) -> float:
        return cka(*self.crosses, estimator)

    def without_each(self) -> torch.Tensor:
        passes = [LeaveOneOut(cross) for cross in self.crosses]
        for pairs in self.shifted:
            for pass_, pair in zip(passes, pairs, strict=True):
                pass_.add(*pair)
        return replicates(*(pass_.hsic() for pass_ in passes))


def speech_like(
    seed: int, groups: int = 6, width: int = 5, longest: int = 9, offset: float = 0.0, one_frame: bool = False
) -> Groups:
    """Random walks of random lengths: frames that depend on their neighbours, as in speech."""
    random = np.random.default_rng(seed)
    lengths = [1] * groups if one_frame else random.integers(1, longest + 1, groups)
    return [offset + random.standard_normal((n, width)).cumsum(0) for n in lengths]


def related(xs: Groups, seed: int, width: int = 4, noise: float = 1.0) -> Groups:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((xs[0].shape[1], width))
    return [x @ mixing + noise * random.standard_normal((len(x), width)) for x in xs]


seeds = st.integers(0, 2**32 - 1)
offsets = st.sampled_from([0.0, 1.0, 30.0, 300.0])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, offset=offsets)
def test_the_frame_estimators_are_the_definitions(seed: int, offset: float) -> None:
    xs = speech_like(seed, offset=offset)
    ys = related(xs, seed + 1)
    x, y = np.concatenate(xs), np.concatenate(ys)
    x, y = x - x.mean(0), y - y.mean(0)  # which changes neither, and spares the oracle its own rounding
    if len(x) < 5:
        return
    sums = Sums(xs, ys)
    assert sums.cka("biased") == pytest.approx(oracles.ratio(oracles.hsic_biased, x, y), abs=1e-5)
    song = [oracles.hsic_song(x, y), oracles.hsic_song(x, x), oracles.hsic_song(y, y)]
    if min(song[1:]) > 1e-3 * oracles.hsic_biased(x, x):
        assert sums.cka("frame") == pytest.approx(oracles.ratio(oracles.hsic_song, x, y), rel=1e-4, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, offset=offsets, groups=st.integers(4, 7))
def test_the_group_estimator_is_the_mean_over_four_different_groups(seed: int, offset: float, groups: int) -> None:
    xs = speech_like(seed, groups, offset=offset)
    ys = related(xs, seed + 1)
    cross = Sums(xs, ys).crosses[0]
    scale = math.sqrt(hsic(cross_of(xs), "biased") * hsic(cross_of(ys), "biased"))
    centred = [x - xs[0].mean(0) for x in xs], [y - ys[0].mean(0) for y in ys]
    assert hsic(cross, "group") == pytest.approx(oracles.hsic_of_groups(*centred), abs=1e-5 * scale)


def cross_of(xs: Groups) -> Cross:
    return Sums(xs, xs).crosses[0]


def test_agreement_is_to_seven_digits_on_well_behaved_features() -> None:
    random = np.random.default_rng(0)
    xs = [random.standard_normal((int(n), 16)) + 2 for n in random.integers(20, 60, 12)]
    mixing = random.standard_normal((16, 12))
    ys = [x @ mixing + random.standard_normal((len(x), 12)) for x in xs]
    sums, x, y = Sums(xs, ys), np.concatenate(xs), np.concatenate(ys)
    assert sums.cka("biased") == pytest.approx(oracles.ratio(oracles.hsic_biased, x, y), abs=1e-7)
    assert sums.cka("frame") == pytest.approx(oracles.ratio(oracles.hsic_song, x, y), abs=1e-7)
    expected = oracles.ratio(oracles.hsic_of_groups, xs[:6], ys[:6])
    assert Sums(xs[:6], ys[:6]).cka("group") == pytest.approx(expected, abs=1e-7)


def test_the_biased_estimator_is_that_of_rsatoolbox() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((30, 8))
    y = x @ random.standard_normal((8, 6)) + random.standard_normal((30, 6))
    data = [rsatoolbox.data.Dataset(features) for features in (x, y)]
    dissimilarities = [rsatoolbox.rdm.calc_rdm(one, method="euclidean") for one in data]
    theirs = rsatoolbox.rdm.compare(*dissimilarities, method="cosine_cov")
    assert Sums([x], [y]).cka("biased") == pytest.approx(float(theirs[0, 0]), abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_rotation_scale_translation_and_order_change_nothing(estimator: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    xs = [random.standard_normal((int(n), 6)) for n in random.integers(5, 12, 8)]
    ys = related(xs, seed + 1, noise=0.3)
    rotation, _ = np.linalg.qr(random.standard_normal((6, 6)))
    moved = [7 * x @ rotation + 5 for x in xs]
    order = random.permutation(8)
    plain = Sums(xs, ys).cka(estimator)
    assert Sums(moved, ys).cka(estimator) == pytest.approx(plain, abs=1e-4)
    assert Sums([xs[i] for i in order], [ys[i] for i in order]).cka(estimator) == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("estimator", ["frame", "biased"])
def test_how_frames_are_cut_into_groups_is_nothing_to_the_frame_estimators(estimator: Any) -> None:
    xs = speech_like(5)
    ys = related(xs, 6)
    once = Sums([np.concatenate(xs)], [np.concatenate(ys)]).cka(estimator)
    assert Sums(xs, ys).cka(estimator) == pytest.approx(once, abs=1e-6)


def test_with_one_frame_to_a_group_both_unbiased_estimators_are_the_same() -> None:
    xs = speech_like(7, groups=25, one_frame=True)
    sums = Sums(xs, related(xs, 8))
    assert sums.cka("group") == pytest.approx(sums.cka("frame"), abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_representation_reads_exactly_one_with_itself(estimator: Any) -> None:
    xs = speech_like(9, groups=12)
    assert Sums(xs, xs).cka(estimator) == 1


def test_dimensions_with_large_means_cost_no_digits() -> None:
    """In float32 without a shift this is off by up to a tenth."""
    random = np.random.default_rng(1)
    xs = [random.standard_normal((40, 24)) for _ in range(20)]
    ys = [x + random.standard_normal(x.shape) for x in xs]
    far = [x + np.where(np.arange(24) < 2, 300, 0) for x in xs]
    x, y = np.concatenate(xs), np.concatenate(ys)
    assert Sums(far, ys).cka("frame") == pytest.approx(oracles.ratio(oracles.hsic_song, x, y), abs=1e-6)


def test_unrelated_speech_reads_zero_by_groups_and_far_from_it_by_frames() -> None:
    """Why `group` is the default: neighbouring frames are alike, and the frame estimators take them for news."""
    found: dict[str, list[float]] = {"group": [], "frame": []}
    for seed in range(12):
        random = np.random.default_rng(seed)
        xs, ys = ([smooth(random, 60, 32) for _ in range(12)] for _ in range(2))
        for estimator, values in found.items():
            values.append(Sums(xs, ys).cka(estimator))
    assert abs(np.mean(found["group"])) < 0.02
    assert np.mean(found["frame"]) > 0.1


def test_the_group_estimator_finds_a_known_truth() -> None:
    """Y = X + noise of the same spread: the covariances give CKA = 1/2."""
    found = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        xs = [smooth(random, 60, 16) for _ in range(24)]
        ys = [np.hstack([x, smooth(random, 60, 16)]) for x in xs]
        found.append(Sums(xs, ys).cka("group"))
    truth = 16 / math.sqrt(16 * 32)
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(20) + 0.01)


def smooth(random: np.random.Generator, frames: int, width: int) -> NDArray[Any]:
    """Stationary, of unit variance, correlation 0.95 between neighbours."""
    values = np.empty((frames, width))
    values[0] = random.standard_normal(width)
    for t in range(1, frames):
        values[t] = 0.95 * values[t - 1] + math.sqrt(1 - 0.95**2) * random.standard_normal(width)
    return values


@settings(max_examples=15, deadline=None)
@given(seed=seeds, offset=offsets, groups=st.integers(5, 9))
def test_the_jackknife_leaves_out_each_group_as_if_it_had_never_been(seed: int, offset: float, groups: int) -> None:
    random = np.random.default_rng(seed)
    xs = [offset + random.standard_normal((int(n), 6)) for n in random.integers(8, 20, groups)]
    ys = related(xs, seed + 1, noise=0.3)
    brute = [Sums(xs[:i] + xs[i + 1 :], ys[:i] + ys[i + 1 :]).cka("group") for i in range(groups)]
    found = Sums(xs, ys).without_each()
    for value, expected in zip(found.tolist(), brute, strict=True):
        assert math.isnan(expected) or value == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_jackknifes_error_is_that_of_repeated_draws() -> None:
    estimates, errors = [], []
    for seed in range(30):
        random = np.random.default_rng(seed)
        xs = [smooth(random, 20, 8) for _ in range(16)]
        ys = [x + smooth(random, 20, 8) for x in xs]
        sums = Sums(xs, ys)
        estimates.append(sums.cka("group"))
        errors.append(standard_error(sums.without_each()))
    assert np.mean(errors) == pytest.approx(np.std(estimates, ddof=1), rel=0.4)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_fewer_than_four_groups_have_no_group_estimate(groups: int) -> None:
    xs = speech_like(11, groups)
    assert math.isnan(Sums(xs, xs).cka("group"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_representation_has_no_value(estimator: Any) -> None:
    xs = speech_like(12)
    assert math.isnan(Sums(xs, [np.ones((len(x), 3)) for x in xs]).cka(estimator))


def test_values_below_zero_are_kept() -> None:
    values = []
    for seed in range(30):
        xs, ys = speech_like(seed, 8), speech_like(seed + 1000, 8)
        ys = [np.resize(y, (len(x), 5)) for x, y in zip(xs, ys, strict=True)]
        values.append(Sums(xs, ys).cka("group"))
    assert min(value for value in values if math.isfinite(value)) < 0


def test_procrustes_is_one_up_to_a_rotation_and_sees_what_cka_overlooks() -> None:
    random = np.random.default_rng(2)
    xs = [random.standard_normal((30, 8)) * np.array([30, 1, 1, 1, 1, 1, 1, 1]) for _ in range(8)]
    rotation, _ = np.linalg.qr(random.standard_normal((8, 8)))
    same = Sums(xs, [3 * x @ rotation + 1 for x in xs])
    assert procrustes(same.crosses[0]) == pytest.approx(1, abs=1e-6)
    first_only = Sums(xs, [np.hstack([x[:, :1], random.standard_normal((30, 7))]) for x in xs])
    assert first_only.cka("biased") > 0.99
    assert procrustes(first_only.crosses[0]) < first_only.cka("biased")


def test_procrustes_is_the_nuclear_norm_of_the_cross_covariance() -> None:
    xs = speech_like(13)
    ys = related(xs, 14)
    x, y = np.concatenate(xs), np.concatenate(ys)
    x, y = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.svd(x.T @ y, compute_uv=False).sum() / (np.linalg.norm(x) * np.linalg.norm(y))
    assert procrustes(Sums(xs, ys).crosses[0]) == pytest.approx(expected, abs=1e-6)


def test_the_cosine_is_of_frames() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert mean_cosine(x, y) == pytest.approx(0.5)
