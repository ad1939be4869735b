"""A sweep of models on the Hub: their weights cross the network once, and the pick goes back with its evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run
    from harness import HubServer

PAIR = Path("examples/pair").resolve()
SIDES = ("base", "finetuned")
SIZE = "size=du -sb {model} | cut -f1"


@pytest.fixture
def repos(hub: HubServer) -> list[str]:
    for side in SIDES:
        hub.repo(f"alice/{side}", PAIR / side)
    hub.reset()
    return [f"alice/{side}" for side in SIDES]


@pytest.mark.parametrize("scores", [["--probe-seconds", "15"], ["--no-cka", "--score", SIZE]], ids=["live", "files"])
def test_the_weights_cross_the_network_once(
    scores: list[str], repos: list[str], hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    ran = spawn("sweep", *repos, "--alphas", "0:1:0.25", *scores, "-o", "out", "--json", env=hub.env())
    assert ran.code == 0, ran.err
    weights = sum((PAIR / side / "model.safetensors").stat().st_size for side in SIDES)
    assert weights <= sum(entry.sent for entry in hub.log()) < 1.2 * weights
    local = spawn("sweep", *(PAIR / side for side in SIDES), "--alphas", "0:1:0.25", *scores, "-o", "local", "--json")
    found, expected = (json.loads(each.out)["cells"] for each in (ran, local))
    if "--score" not in scores:  # the card names the models
        assert found == expected


def test_the_pick_is_pushed_with_its_scores(repos: list[str], hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(
        "sweep", *repos, "--alphas", "0.5", "--no-cka", "--score", SIZE, "--maximize", "size", "-o", "out",
        "--merge-best", "best", "--push-to-hub", "alice/merged", "-q", env=hub.env(),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "/alice/merged/commit/" in ran.out
    card = (tmp_path / "best/README.md").read_text()
    assert "model-index:" in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (tmp_path / "best/speechft_merge.json").read_text()
