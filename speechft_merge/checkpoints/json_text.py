"""Parses JSON out of foreign files: bounded in what it becomes in memory, which may be a hundred times its text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError, quote
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT = 16 << 20
"""Most bytes of a text. The header of a model of 80,000 tensors has 12 MB, a config.json 5 KB."""
MAX_VALUES = 1_000_000
"""Most values in it, counted by the signs that part them. A tensor in a header has twelve."""


def parse_json(content: bytes, name: str, strict: bool = False) -> Any:
    """Return the value that a JSON text describes.

    Args:
        content: the text.
        name: what to call it in messages.
        strict: whether NaN is refused, and a name that an object has twice.

    Raises:
        CheckpointError: it is not JSON, or larger than `MAX_TEXT` or `MAX_VALUES`.
    """
    if len(content) > MAX_TEXT:
        raise CheckpointError(f"{name} has {len(content)} bytes of JSON, at most {MAX_TEXT} are allowed")
    values = sum(map(content.count, (b",", b":", b"[", b"{")))
    if values > MAX_VALUES:
        raise CheckpointError(f"{name} holds some {values} values, at most {MAX_VALUES} are allowed")
    try:
        hooks: dict[str, Any] = {"object_pairs_hook": _unique_names, "parse_constant": _refuse} if strict else {}
        return json.loads(content.decode(), **hooks)
    except RecursionError:
        raise CheckpointError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}") from error


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the name {quote(name)} occurs twice")
        table[name] = value
    return table


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def read_json(path: Path) -> Any:
    """Return the value that a file of JSON describes.

    Raises:
        NotFoundError: it cannot be read, or is no regular file.
        CheckpointError: see `parse_json`.
    """
    with LocalFile(path) as file:
        return parse_json(file.read(0, min(file.size, MAX_TEXT + 1)), str(path))
