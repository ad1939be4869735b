"""Swaps two paths in one step, so that there is no moment in which either is missing."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE in linux/fs.h, RENAME_SWAP in macOS' sys/stdio.h
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths on one file system; return False where the system cannot (NFS, HFS+, kernels before 3.15).

    Raises:
        OSError: one of them does not exist, or may not be renamed.
    """
    import ctypes  # costs 5 ms, which a merge into a new folder need not pay

    source, target = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renamex_np"):  # macOS
            failed = libc.renamex_np(source, target, _EXCHANGE)
        else:
            failed = libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _EXCHANGE)
    except (AttributeError, OSError):  # no glibc of 2.28 or later, nor musl of 1.2.6
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
