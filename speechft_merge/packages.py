"""Says what to install when an optional package is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(package: str, extra: str = "cka") -> Iterator[None]:
    """Turn a failed import of a package of an extra into an error that says what to install.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise not_installed(package, extra) from error


def not_installed(package: str, extra: str = "cka") -> UsageError:
    """Return the error for a package of an extra that is missing."""
    hint = f"run pip install {package}; in a clone pip install '.[{extra}]' has all of its kind"
    return UsageError(f"{package} is not installed", hint=hint)


def require_packages(*packages: str, extra: str = "cka") -> None:
    """Fail early if a package of an extra is missing, without importing it.

    Raises:
        UsageError: one is.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise not_installed(package, extra)
