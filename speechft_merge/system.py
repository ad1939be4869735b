"""Refuses a system on which nothing here works."""

from __future__ import annotations

import sys

from speechft_merge.errors import UsageError


def require_system() -> None:
    """Refuse Windows, which has neither the locks nor the open folders that make an output appear whole.

    Raises:
        UsageError: this is Windows.
    """
    if sys.platform == "win32":
        raise UsageError("speechft-merge runs on Linux and macOS; on Windows use WSL")
