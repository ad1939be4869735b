"""Says what to install when an optional package is missing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(package: str) -> Iterator[None]:
    """Turn a failed import of a package of the extra `cka` into an error that says what to install.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise not_installed(package) from error


def not_installed(package: str) -> UsageError:
    """Return the error for a package that is missing."""
    return UsageError(f"{package} is not installed", hint='run pip install "speechft-merge[cka]"')
