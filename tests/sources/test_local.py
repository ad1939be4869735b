"""Files of a model on disk: how they are read and listed, and which links lead out of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speechft_merge.errors import CheckpointError
from speechft_merge.sources import LocalFolder
from speechft_merge.sources.local import LocalFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A snapshot in a cache of the Hub, with a file and a folder of its own."""
    for name in ("models--a--b/blobs/0123", "models--a--b/snapshots/abc/inner/config.json", "elsewhere/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path / "models--a--b/snapshots/abc"


@pytest.mark.parametrize(
    ("target", "leads_out"),
    [
        ("inner/config.json", False),
        ("../../blobs/0123", False),
        ("../../../elsewhere/config.json", True),
        ("/etc/hostname", True),
        ("../../blobs/../../elsewhere/config.json", True),
        ("nowhere", False),
        ("../nowhere", True),
    ],
)
def test_a_link_that_leads_out_is_known(target: str, leads_out: bool, folder: Path) -> None:
    (folder / "link.json").symlink_to(target)
    assert LocalFolder(folder).leads_out("link.json") is leads_out


def test_in_a_folder_of_a_snapshot_the_blobs_are_its_own_too(folder: Path) -> None:
    (folder / "inner/link.json").symlink_to("../../../blobs/0123")
    assert not LocalFolder(folder / "inner").leads_out("link.json")


def test_a_file_in_a_folder_that_is_a_link_leads_out(folder: Path, tmp_path: Path) -> None:
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert LocalFolder(folder).leads_out("linked/config.json")


def test_a_folder_that_is_a_link_itself_leads_nowhere_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(folder)
    assert not LocalFolder(tmp_path / "short").leads_out("inner/config.json")


def test_folders_of_any_depth_are_listed(folder: Path) -> None:
    (folder / "inner/deep").mkdir()
    assert (LocalFolder(folder).folders(), LocalFolder(folder).folders("inner")) == (["inner"], ["deep"])
    assert LocalFolder(folder).inside("inner") == str(folder / "inner")


@pytest.mark.parametrize("has_preadv", [True, False])
def test_the_same_bytes_are_read_with_and_without_preadv(
    has_preadv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechft_merge.sources.local._PIECE", 7)
    if not has_preadv:
        monkeypatch.delattr(os, "preadv")
    (tmp_path / "file").write_bytes(bytes(range(100)))
    file = LocalFile(tmp_path / "file")
    assert file.read(10, 50) == bytes(range(10, 60))
    os.truncate(tmp_path / "file", 20)
    with pytest.raises(CheckpointError, match="ended at byte 20; it had 100 bytes"):
        file.read(10, 50)
    file.close()


def test_what_macos_keeps_beside_a_file_is_no_file_of_a_model(tmp_path: Path) -> None:
    for name in ("asr.bin", "._asr.bin", "config.json"):
        (tmp_path / name).touch()
    assert LocalFolder(tmp_path).names() == ["asr.bin", "config.json"]
