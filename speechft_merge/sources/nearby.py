"""Finds the local paths whose names are nearest to one that does not exist: most of these are slips of the pen."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

MAX_LISTED = 10_000
"""Most entries of a folder that are compared."""
_LEAST_LIKENESS = 0.6
_SHOWN = 3
_LONGEST = 1000
"""Most characters of a path that are looked at."""


def nearest(text: str) -> str | None:
    """Return in words the paths that one may have meant that does not exist; None if it exists, or nothing is alike."""
    near = nearest_paths(text := text[:_LONGEST])
    return None if not near or Path(text).expanduser().exists() else " or ".join(near)


def nearest_paths(text: str) -> list[str]:
    """Return existing paths that a mistyped one may have meant, the nearest first; none if nothing is alike."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # a name too long, a user unknown, a NUL in it
        return []
    start = Path(path.anchor) if path.anchor else Path()
    parts = path.parts[1:] if path.anchor else path.parts
    found = [start]
    for part in parts:
        found = [inner for folder in found for inner in _alike(folder, part)]
    return list(dict.fromkeys(str(path) for path in found if path != start))[:_SHOWN]


def _alike(folder: Path, name: str) -> list[Path]:
    if (folder / name).exists():
        return [folder / name]
    try:
        names = [entry.name for entry in islice(folder.iterdir(), MAX_LISTED)]
    except OSError:
        return []
    folded: dict[str, list[str]] = {}
    for entry in names:
        folded.setdefault(entry.casefold(), []).append(entry)
    from difflib import get_close_matches  # not for paths that exist

    alike = get_close_matches(name.casefold(), folded, _SHOWN, _LEAST_LIKENESS)
    found = [folder / entry for near in alike for entry in folded[near]]
    return [path for path in found if path.exists()][:_SHOWN]  # a link may lead nowhere
