"""Comparing models that lie on the Hub, and what of a comparison is pushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server import card

if TYPE_CHECKING:
    from conftest import Run
    from harness import HubServer

PAIR = Path("examples/pair").resolve()
CLIPS = Path("speechft_merge/similarity/probe_audio").resolve()


@pytest.fixture
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    for name in ("en-cards-1", "en-cards-2", "en-goforward-1", "fr-armelle-1"):
        (folder / f"{name}.flac").symlink_to(CLIPS / f"{name}.flac")
    return folder


def test_remote_models_compare_as_local_ones_do(hub: HubServer, spawn: Run, probe: Path) -> None:
    hub.repo("alice/small-base", PAIR / "base")
    hub.repo("alice/small-ft", PAIR / "finetuned")
    options = ("--probe", probe, "--json")
    remote = spawn("compare", "alice/small-base", "alice/small-ft@main", *options, env=hub.env())
    assert remote.code == 0, remote.err
    local = spawn("compare", PAIR / "base", PAIR / "finetuned", *options, env=hub.env())
    assert remote.json["layers"] == local.json["layers"]
    assert remote.json["models"]["base"] == "alice/small-base"


def test_a_pushed_merge_has_its_comparison_in_the_card_and_no_path_of_this_machine(
    hub: HubServer, spawn: Run, probe: Path, tmp_path: Path
) -> None:
    hub.repo("alice/small-base", PAIR / "base")
    hub.repo("alice/small-ft", PAIR / "finetuned")
    hub.delete("alice/compared")
    ran = spawn(
        "alice/small-base", "alice/small-ft", "--cka", "--probe", probe, "--push-to-hub", "alice/compared",
        env=hub.env(),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    stored = hub.stored("alice/compared")
    text = stored.files["README.md"].read_text()
    assert card.errors(text) == []
    assert "![CKA by layer. Base vs fine-tuned: " in text
    assert "](similarity.png)" in text
    assert stored.files["similarity.png"].read_bytes().startswith(b"\x89PNG")
    report = stored.files["similarity.json"].read_text()
    assert json.loads(report)["utterances"] == 4
    assert str(tmp_path) not in report + text
    commits = [stored_commit(hub, "alice/small-base"), stored_commit(hub, "alice/small-ft")]
    compared = json.loads(report)["models"]
    assert [compared["base"].partition("@")[2], compared["finetuned"].partition("@")[2]] == commits
    again = spawn(
        "alice/small-base", "alice/small-ft", "--alpha", "0.5", "--push-to-hub", "alice/compared", env=hub.env()
    )
    assert again.code == 0, again.err
    assert not {"similarity.json", "similarity.png"} & hub.stored("alice/compared").files.keys()


def stored_commit(hub: HubServer, repo: str) -> str:
    return hub.stored(repo).sha


def test_a_pushed_comparison_of_local_models_holds_no_path_of_this_machine(
    hub: HubServer, spawn: Run, probe: Path
) -> None:
    hub.delete("alice/compared")
    (probe / "broken.wav").write_bytes(b"RIFF")
    ran = spawn(
        PAIR / "base", PAIR / "finetuned", "--cka", "--probe", probe, "--push-to-hub", "alice/compared", env=hub.env()
    )
    assert ran.code == 0, ran.err
    report = hub.stored("alice/compared").files["similarity.json"].read_text()
    assert "broken.wav" in report
    assert str(PAIR.parent) not in report
    assert str(probe) not in report
