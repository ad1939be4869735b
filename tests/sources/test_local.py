"""Links in a folder of a model: those that lead out of it are known, but for those of the Hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_merge.sources import LocalFolder


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
