"""Any number of merges into one output: who exits 0 has left or found a whole one, and nobody's is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from zygote import Ended, Job, Runs, hidden

if TYPE_CHECKING:
    from conftest import Pair

TRIALS = 200
SHARDS = ["--max-shard-size", "8KB"]
LONGEST = 0.02
"""Seconds of a delay: a merge of the small pair takes a tenth."""
TOLD_OF = {"README.md", "speechft_merge.json"}
"""Files that tell of the command line, in which only the name of the output is the same for all."""

Contents = dict[str, str]


@pytest.fixture(scope="module")
def whole(small: Pair, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Contents]:
    """(alpha, sharded) -> what a merge makes undisturbed."""
    made = {}
    for alpha in ("0.1", "0.2", "0.3"):
        for sharded in (False, True):
            folder = tmp_path_factory.mktemp("whole")
            (ended,) = runs([job(small, folder, 0, alpha, sharded)])
            assert ended.code == 0, ended.err
            assert ended.seen
            made[alpha, sharded] = mixed(ended.seen)
    return made


def job(small: Pair, folder: Path, number: int, alpha: str, sharded: bool, *options: str) -> Job:
    words = [*small.args, "-o", "out", "-q", "--workers", "1", "--alpha", alpha, *(SHARDS if sharded else []), *options]
    return Job(words, str(folder), f"job{number}", watched="out")


def mixed(contents: Contents | None) -> Contents | None:
    """What does not tell of the command line; and that the rest is there."""
    return contents and {name: "there" if name in TOLD_OF else digest for name, digest in contents.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    range(int(__import__("os").environ.get("SEED0", "0")), int(__import__("os").environ.get("SEED0", "0")) + TRIALS),
)
def test_of_merges_at_once_none_exits_0_without_a_whole_output(
    seed: int, small: Pair, runs: Runs, whole: dict[tuple[str, bool], Contents], tmp_path: Path
) -> None:
    dice = random.Random(seed)
    count = dice.choice([2, 2, 2, 3, 4, 8])
    equal, overwrite, sharded = dice.random() < 0.5, dice.random() < 0.5, dice.random() < 0.5
    alphas = ["0.1"] * count if equal else [dice.choice(["0.1", "0.2"]) for _ in range(count)]
    if overwrite:
        (ended,) = runs([job(small, tmp_path, 99, "0.3", sharded)])
        assert ended.code == 0
    jobs = [
        job(small, tmp_path, number, alpha, sharded, *(["--overwrite"] if overwrite else []))
        for number, alpha in enumerate(alphas)
    ]
    exchange = dice.random() < 0.8
    for one in jobs:
        one.plan.exchange = exchange
        one.plan.seed, one.plan.longest = dice.randrange(1 << 30), dice.choice([0, LONGEST])
    ended = runs(jobs)
    right = [whole[alpha, sharded] for alpha in {*alphas}]
    allowed = right if exchange else [*right, None]  # without it a rival may be between its two steps
    told = [(one.code, one.err) for one in ended]
    assert {one.code for one in ended} <= ({0} if equal else {0, 73}), told
    assert 0 in [one.code for one in ended], told
    for one, alpha in zip(ended, alphas, strict=True):
        if one.code == 0:
            assert mixed(one.seen) in allowed if overwrite else mixed(one.seen) == whole[alpha, sharded], told
    assert mixed(ended_with(ended)) in right
    if hidden(tmp_path):  # a loser's finished shards, for a later try with --overwrite
        assert sharded
        assert "finished shards are kept" in "".join(one.err for one in ended)
        (last,) = runs([job(small, tmp_path, 98, "0.3", sharded, "--overwrite")])
        assert (last.code, mixed(last.seen)) == (0, whole["0.3", sharded])
        assert hidden(tmp_path) == []


def ended_with(ended: list[Ended]) -> Contents | None:
    return max(ended, key=lambda one: one.seconds).seen
