"""Knows the system that this runs on: refuses one on which nothing here works, and keeps what is set for itself."""

from __future__ import annotations

import os
import sys

from speechft_merge.errors import UsageError

_OWN: set[str] = set()


def require_system() -> None:
    """Refuse Windows, which has neither the locks nor the open folders that make an output appear whole.

    Raises:
        UsageError: this is Windows.
    """
    if sys.platform == "win32":
        raise UsageError("speechft-merge runs on Linux and macOS; on Windows use WSL")


def set_own(name: str, value: str) -> None:
    """Set an environment variable for this process, unless the user set it."""
    if name not in os.environ:
        os.environ[name] = value
        _OWN.add(name)


def foreign_environment() -> dict[str, str]:
    """Return the environment as the user set it, for a command of theirs."""
    return {name: value for name, value in os.environ.items() if name not in _OWN}
