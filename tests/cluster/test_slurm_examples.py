"""The other scripts for Slurm that ship do what they say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Pair, Tiny
    from harness import HubServer
    from private_slurm import Slurm

SCRIPTS = Path(__file__).parents[2] / "examples/slurm"


def test_a_merge_is_one_job(slurm: Slurm, pair: Pair, tiny: Tiny, tmp_path: Path) -> None:
    job = slurm.sbatch(SCRIPTS / "merge.sh", *pair.args, "merged", cwd=tmp_path)
    assert slurm.wait(job) == {job: "COMPLETED"}
    assert (tmp_path / f"merge_{job}.log").read_text() == "merged\n"
    assert tiny.read(tmp_path / "merged").keys() == tiny.read(pair.base).keys()


def test_nodes_without_a_network_merge_what_the_login_node_fetched_and_pushes(
    slurm: Slurm, hub: HubServer, pair: Pair, tmp_path: Path
) -> None:
    hub.repo("org/base", pair.base)
    hub.repo("org/finetuned", pair.finetuned)
    hub.delete("alice/merged")
    words = [SCRIPTS / "offline.sh", "org/base", "org/finetuned", "merged", "alice/merged"]
    done = subprocess.run(
        words, env=os.environ | hub.env(), cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + slurm.log()
    assert done.stdout.splitlines()[-1].startswith(f"{hub.endpoint}/alice/merged/commit/")
    (log,) = tmp_path.glob("merge_*.log")
    assert log.read_text() == "merged\n"
    assert len(hub.log("GET /api/models/org/.*/revision/main")) == 2, "asked by hf, not by the job"
    assert len(hub.log("GET /cdn/")) == 2, "the weights were downloaded once each"
    assert hub.stored("alice/merged").files.keys() >= {"model.safetensors", "config.json"}
