"""What crosses the network: each byte of a model once, also where the merge is compared and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from conftest import Run
    from harness import HubServer

PAIR = Path("examples/pair").resolve()


def sent(hub: HubServer) -> int:
    """Bytes of all that the Hub sent; beside weights it is little."""
    return sum(entry.sent for entry in hub.log())


def encoder_bytes(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "np") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys() if "classifier" not in name)  # noqa: SIM118


def test_a_merge_that_is_compared_reads_each_byte_once(hub: HubServer, spawn: Run) -> None:
    hub.repo("alice/small-base", PAIR / "base")
    hub.repo("alice/small-ft", PAIR / "finetuned")
    hub.reset()
    ran = spawn("alice/small-base", "alice/small-ft", "-o", "out", "--cka", "--probe-seconds", "10", env=hub.env())
    assert ran.code == 0, ran.err
    needed = encoder_bytes(PAIR / "base") + encoder_bytes(PAIR / "finetuned")
    assert needed < sent(hub) < 1.1 * needed


def test_an_output_is_verified_at_the_commits_that_were_merged(hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    hub.repo("alice/small-base", PAIR / "base")
    hub.repo("alice/small-ft", PAIR / "finetuned")
    assert spawn("alice/small-base", "alice/small-ft", "-o", "out", env=hub.env()).code == 0
    record = json.loads((tmp_path / "out/speechft_merge.json").read_text())
    hub.commit("alice/small-ft", {"model.safetensors": (PAIR / "base/model.safetensors").read_bytes()})
    ran = spawn("verify", "out", "--json", env=hub.env())
    assert ran.code == 0, ran.err
    assert ran.json["verified"] is True
    commits = {entry["hub"]["commit"] for entry in (record["base"], *record["finetuned"])}
    assert all(any(commit in entry.path for entry in hub.log()) for commit in commits)
