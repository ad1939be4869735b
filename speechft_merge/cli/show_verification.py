"""Shows what a verification found: the first files and tensors that differ, and by how much."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.sink import Shown

if TYPE_CHECKING:
    from speechft_merge.verifying import Verification


def show_verification(found: Verification, output: str) -> Shown:
    """Return what differs, or that nothing does; the last line is the output, as the user named it."""
    return Shown(partial(_document, found, output), lambda verbose: [*found.parts(verbose), output], output)


def _document(found: Verification, output: str) -> dict[str, Any]:
    return {"output": output} | found.to_json()
