"""Two paths change places in one step, by the call that this system has for it, or stay where they are."""

from __future__ import annotations

import ctypes
import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from speechft_merge.output.exchange import exchange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_SWAP = -100, 2


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    return tmp_path / "one", tmp_path / "other"


def renamex_np(source: bytes, target: bytes, flags: int) -> Any:
    """What macOS has in place of `renameat2`; the number of this flag is the same."""
    assert flags == RENAME_SWAP
    return LIBC.renameat2(AT_FDCWD, source, AT_FDCWD, target, flags)


def fail_with(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    return fail


def test_two_folders_change_places_and_back_as_on_macos(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = folders
    if not exchange(one, other):
        pytest.skip("the file system cannot")
    assert [path.name for path in (*one.iterdir(), *other.iterdir())] == ["other", "one"]
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renamex_np=renamex_np))
    assert exchange(one, other)
    assert [path.name for path in (*one.iterdir(), *other.iterdir())] == ["one", "other"]
    with pytest.raises(FileNotFoundError):
        exchange(one, one.with_name("missing"))


@pytest.mark.parametrize(
    "system",
    [
        SimpleNamespace(),
        SimpleNamespace(renamex_np=fail_with(errno.ENOTSUP)),
        SimpleNamespace(renameat2=fail_with(errno.EINVAL)),
        SimpleNamespace(renameat2=fail_with(errno.ENOSYS)),
    ],
    ids=["no call", "HFS+", "NFS", "old kernel"],
)
def test_a_system_that_cannot_is_no_error(
    system: Any, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: system)
    assert not exchange(*folders)
    assert [path.name for path in folders[0].iterdir()] == ["one"]
