"""The floor is what is left where nothing is in common, by definitions written out with whole Gram matrices."""

from __future__ import annotations

import itertools

import numpy as np
import oracles
import pytest
import torch
from hierarchy import World, by_voice
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.similarity.floor import DRAWS, draw_pairing, measure_floor

lengths_of_groups = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=4, max_size=7)


def starts_of(lengths: list[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths)][:-1]


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_groups, draw=st.integers(0, 50))
def test_no_clip_meets_one_of_its_own_group_and_every_frame_is_one_of_its_partner(
    lengths: list[list[int]], draw: int
) -> None:
    turned, aligned = draw_pairing(lengths, draw)
    others = [other for other, *_ in turned]
    assert sorted(others) == [*range(len(lengths))]
    assert all(group != other for group, other in enumerate(others))
    assert [other for other, *_ in aligned] == others
    for group, (other, here, there) in enumerate(turned):
        assert here.tolist() == [*range(sum(lengths[group]))]
        assert all(0 <= place < sum(lengths[other]) for place in there.tolist())
        for clip, (start, frames) in enumerate(zip(starts_of(lengths[group]), lengths[group], strict=True)):
            its = clip % len(lengths[other])
            begin, theirs = starts_of(lengths[other])[its], lengths[other][its]
            found = [place - begin for place in there[start : start + frames].tolist()]
            assert found == [(found[0] + step) % theirs for step in range(frames)]
    for group, (other, here, there) in enumerate(aligned):
        own, its = ([place - s for s, n in zip(starts_of(of), of, strict=True) for place in range(s, s + n)]
                    for of in (lengths[group], lengths[other]))  # fmt: skip
        assert [own[place] for place in here.tolist()] == [its[place] for place in there.tolist()]


def test_the_same_pairings_are_drawn_each_time_and_others_each_draw() -> None:
    lengths = [[30, 40]] * 8
    once, again = ([draw_pairing(lengths, draw)[0] for draw in range(DRAWS)] for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert all(a == b and torch.equal(c, d) for (a, _, c), (b, _, d) in zip(one, other, strict=True))
    assert len({tuple(other for other, *_ in pairing) for pairing in once}) > DRAWS / 2


def of_one_layer(lengths: list[list[int]]) -> list[list[list[int]]]:
    return [[[frames] for frames in group] for group in lengths]


def test_the_figures_are_the_definitions_over_four_different_groups() -> None:
    random = np.random.default_rng(2)
    lengths = [[3, 2], [4], [2, 2, 1], [5], [3]]
    features = [random.standard_normal((sum(clips), 4)) for clips in lengths]
    own = oracles.hsic_of_groups(features, features)
    expected = []
    for draw in range(DRAWS):
        for pairing in draw_pairing(lengths, draw):
            xs = [features[group][here] for group, (_, here, _) in enumerate(pairing)]
            ys = [features[other][there] for other, _, there in pairing]
            expected.append(oracles.hsic_of_groups(xs, ys) / own)
    (found,) = measure_floor([[[torch.from_numpy(one)] for one in features]], of_one_layer(lengths), "group")
    turned, aligned = expected[::2], expected[1::2]
    assert found.mean == pytest.approx(np.mean(turned), abs=1e-5)
    assert found.sd == pytest.approx(np.std(turned, ddof=1), abs=1e-5)
    assert found.aligned == pytest.approx(np.mean(aligned), abs=1e-5)


@pytest.mark.parametrize("voices", [6, 12])
def test_speech_of_different_voices_reads_0_unless_clips_begin_alike(voices: int) -> None:
    world, floors, aligned = World(width=6, voices=0.4), [], []
    draws = world.draw(8, voices, seed=8)
    for number, groups in enumerate(by_voice(draws)):
        lengths = [[world.frames] * int(clips) for clips in draws.clips[number]]
        onset = (
            2.0 * (np.arange(world.frames) == 0)[:, None] * np.ones(world.width)
        )  # as if all clips began with a bang
        layer = [
            [torch.from_numpy(x + np.tile(onset, (len(own), 1)))] for (x, _), own in zip(groups, lengths, strict=True)
        ]
        (floor,) = measure_floor([layer], of_one_layer(lengths), "group")
        floors.append(floor.mean)
        aligned.append(floor.aligned)
        assert 0 < floor.sd < 0.3
    assert abs(np.mean(floors)) < 3 * np.std(floors) / np.sqrt(8) + 0.01
    assert np.mean(aligned) > 0.2


def test_layers_of_other_lengths_have_the_floors_that_each_has_alone() -> None:
    random = np.random.default_rng(4)
    frames, tokens = [[7, 4], [5], [6, 3], [8], [5]], [[2, 3], [1], [4, 2], [2], [3]]
    layers = [
        [[torch.from_numpy(random.standard_normal((sum(group), 3)))] for group in lengths]
        for lengths in (frames, tokens)
    ]
    both = [[[*clip] for clip in zip(*groups, strict=True)] for groups in zip(frames, tokens, strict=True)]
    alone = [
        measure_floor([layer], of_one_layer(lengths), "group")[0]
        for layer, lengths in zip(layers, (frames, tokens), strict=True)
    ]
    assert measure_floor(layers, both, "group") == alone


def test_features_that_do_not_vary_have_no_floor() -> None:
    (floor,) = measure_floor([[[torch.ones(5, 3)]] * 5], of_one_layer([[5]] * 5), "group")
    assert np.isnan(floor.mean)


@pytest.mark.parametrize("estimator", ["frame", "biased"])
def test_by_the_other_estimators_the_floor_is_what_they_mistake_for_likeness(estimator: str) -> None:
    (groups,) = by_voice(World(width=10).draw(1, 8, seed=9))
    lengths, layer = [[len(x)] for x, _ in groups], [[torch.from_numpy(x)] for x, _ in groups]
    assert measure_floor([layer], of_one_layer(lengths), estimator)[0].mean > 0.05  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["frame", "biased"])
def test_by_the_other_estimators_all_frames_of_a_long_probe_are_taken(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on how many there are."""
    (groups,) = by_voice(World(width=6).draw(1, 6, seed=9))
    lengths, layer = [[len(x)] for x, _ in groups], [[torch.from_numpy(x)] for x, _ in groups]
    whole = measure_floor([layer], of_one_layer(lengths), estimator)  # type: ignore[arg-type]
    monkeypatch.setattr("speechft_merge.similarity.floor.FRAMES", 10)
    assert measure_floor([layer], of_one_layer(lengths), estimator) == whole  # type: ignore[arg-type]
