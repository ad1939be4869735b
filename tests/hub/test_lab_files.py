"""The labs' checkpoints on the Hub: read by ranges, written back whole, pushed."""

from __future__ import annotations

import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from lab_files import s3prl_base, s3prl_finetune
from lab_models import Lab, build_lab, shaken

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from harness import HubServer

LAB = Lab("hubert", layers=3, width=256, inner=1024)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A base of 10 MB and a fine-tune of 30 MB, two thirds of it Adam's moments."""
    base = build_lab(LAB).state_dict()
    torch.save(s3prl_base(LAB, base), tmp_path / "hubert_base.pt")
    torch.save(s3prl_finetune(LAB, shaken(base)), tmp_path / "dev-best.ckpt")
    return tmp_path / "hubert_base.pt", tmp_path / "dev-best.ckpt"


def test_a_labs_base_on_the_hub_is_written_back_as_one_here(
    files: tuple[Path, Path], hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    base, finetuned = files
    hub.repo("alice/s3prl", {base.name: base, "other.pt": base, "dev-best.ckpt": finetuned})
    assert spawn(base, finetuned, "-o", "local", "--no-fsync").code == 0
    ran = spawn("alice/s3prl:hubert_base.pt", "alice/s3prl:dev-best.ckpt", "-o", "out", env=hub.env())
    assert (ran.code, ran.err) == (0, "")
    content = (tmp_path / "out" / "merged_model.pt").read_bytes()
    assert content == (tmp_path / "local" / "merged_model.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None
    size, whole = base.stat().st_size, finetuned.stat().st_size
    sent = sum(entry.sent for entry in hub.log("GET .*/cdn/"))
    assert whole > 2.5 * size
    assert size < sent < 2.6 * size


def test_archives_of_nemo_on_the_hub_are_written_back_as_here(
    files: tuple[Path, Path], hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    for path in files:
        with tarfile.open(path.with_suffix(".nemo"), "w") as archive:
            archive.add(path, "./model_weights.ckpt")
            archive.add(__file__, "./model_config.yaml")
    base, finetuned = (path.with_suffix(".nemo") for path in files)
    hub.repo("alice/base", {base.name: base})
    hub.repo("alice/asr", {finetuned.name: finetuned})
    assert spawn(base, finetuned, "-o", "local", "--no-fsync").code == 0
    ran = spawn("alice/base", "alice/asr", "-o", "out", env=hub.env())
    assert (ran.code, ran.err) == (0, "")
    content = (tmp_path / "out" / "merged_model.nemo").read_bytes()
    assert content == (tmp_path / "local" / "merged_model.nemo").read_bytes()
    size = base.stat().st_size
    assert size < sum(entry.sent for entry in hub.log("GET .*/cdn/")) < 2.6 * size


def test_a_labs_file_is_pushed_and_replaces_one_of_an_earlier_merge(
    files: tuple[Path, Path], hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    base, finetuned = files
    hub.repo("alice/merged", {"merged_model.ckpt": b"old", "notes.txt": "kept"})
    ran = spawn(base, finetuned, "-o", "out", "--push-to-hub", "alice/merged", env=hub.env())
    assert ran.code == 0, ran.err
    stored = hub.stored("alice/merged").files
    assert {"merged_model.pt", "speechft_merge.json", "README.md", "notes.txt"} <= stored.keys()
    assert "merged_model.ckpt" not in stored
    assert stored["merged_model.pt"].read_bytes() == (tmp_path / "out" / "merged_model.pt").read_bytes()
