"""--verify-inputs: damage is found by the checksums that there are, and where there is none it is said."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from speechft_merge import MergeOptions, merge
from speechft_merge.checkpoints.opening import open_checkpoint
from speechft_merge.checkpoints.verification import verify
from speechft_merge.errors import CheckpointError
from speechft_merge.sources import LocalFile
from speechft_merge.sources.content import has_checksum, has_content

if TYPE_CHECKING:
    from conftest import Pair

VERIFIED = MergeOptions(fsync=False, verify_inputs=True)
CONTENT = b"weights" * 1000


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    torch.save({"encoder.layers.0.attention.q_proj.weight": torch.arange(4096.0)}, tmp_path / "a.bin")
    return tmp_path / "a.bin"


@pytest.fixture
def archived(zipped: Path) -> Path:
    with tarfile.open(zipped.with_name("a.nemo"), "w") as archive:
        archive.add(zipped, "./model_weights.ckpt")
    return zipped.with_name("a.nemo")


@pytest.mark.parametrize("kind", ["zipped", "archived"])
def test_the_checksums_of_a_zip_are_compared(kind: str, request: pytest.FixtureRequest) -> None:
    zipped: Path = request.getfixturevalue(kind)
    with open_checkpoint(zipped) as checkpoint:
        assert verify(checkpoint) == []
    content = bytearray(zipped.read_bytes())
    content[len(content) // 2] ^= 1
    zipped.write_bytes(content)
    with open_checkpoint(zipped) as checkpoint, pytest.raises(CheckpointError, match=r"record .*data/0.* is wrong"):
        verify(checkpoint)


@pytest.mark.parametrize(
    "identity",
    [hashlib.sha256(CONTENT).hexdigest(), hashlib.sha1(b"blob 7000\0" + CONTENT).hexdigest()],
    ids=["of LFS", "of git"],
)
def test_the_checksum_of_the_hub_is_that_of_the_content(identity: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with LocalFile(tmp_path / "file", identity=identity) as source:
        assert has_checksum(identity)
        assert has_content(source)
    (tmp_path / "file").write_bytes(CONTENT[:-1] + b"x")
    with LocalFile(tmp_path / "file", identity=identity) as source:
        assert not has_content(source)


def test_an_etag_of_another_kind_is_no_checksum() -> None:
    assert not any(map(has_checksum, (None, "", "abc", "0" * 63, "g" * 64, '"' + "0" * 62 + '"')))


def test_a_file_without_a_checksum_is_named(pair: Pair, tmp_path: Path) -> None:
    findings = merge(*pair.args, tmp_path / "out", options=VERIFIED).findings
    assert [finding.text.partition(" has no checksum")[0] for finding in findings] == [
        str(folder / "model.safetensors") for folder in (pair.base, pair.finetuned)
    ]
