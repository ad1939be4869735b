"""Shows what a verification found: the first files and tensors that differ, and by how much."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.sink import Shown
from speechft_merge.cli.text import fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.verifying import Verification

MOST = 10
"""Differences that are listed; `-v` lists all."""


def show_verification(found: Verification, output: str) -> Shown:
    """Return what differs, or that nothing does; the last line is the output, as the user named it."""
    return Shown(partial(_document, found, output), partial(_parts, found, output), output)


def _document(found: Verification, output: str) -> dict[str, Any]:
    return {"output": output} | found.to_json()


def _parts(found: Verification, output: str, verbose: int) -> Iterator[str]:
    for difference in found.differences[: None if verbose else MOST]:
        yield fit(str(difference))
    if not verbose and len(found.differences) > MOST:
        yield f"and {len(found.differences) - MOST} more (-v)"
    if not found.differences:
        files = f"{len(found.files)} files"
        yield f"{files} have the checksums of the manifest" if found.quick else f"{files} are what the merge makes"
    yield output
