"""Shows a push: where the model is, and what became of the files that were there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.cli.sink import Shown
from speechft_merge.text import fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.push import Pushed


def show_push(pushed: Pushed) -> Shown:
    """Return what became of the files; the last line is the URL."""
    return Shown(pushed.to_json, lambda _: [*push_parts(pushed), pushed.url], pushed.url, notes=pushed.notes)


def push_parts(pushed: Pushed) -> Iterator[str]:
    """Yield a line for each thing that became of some of the files."""
    changes = pushed.changes
    for what, names in (("replaced", changes.replaced), ("deleted", changes.deleted), ("kept", changes.kept)):
        if names:
            yield fit(f"{what} in {pushed.repo}: {', '.join(names)}")
