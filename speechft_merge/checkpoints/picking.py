"""Picks one encoder of several in a file: a dictionary beside another, or what is under a prefix."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from speechft_merge.errors import NotFoundError, quote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speechft_merge.checkpoints.index import Checkpoint

_SHOWN = 8


def pick_encoder(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Return the encoder that `name` picks, with its own names.

    Args:
        checkpoint: a file with several.
        name: the path of a dictionary in it, or its last words; else a prefix of names, or its last words.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    states = {checkpoint.state_path: checkpoint, **checkpoint.alternatives}
    found = {path: state for path, state in states.items() if f".{path}".endswith(f".{name}")}
    if not found:
        found = {
            prefix: _under(prefix, state) for state in states.values() for prefix in _prefixes(name, state.tensors)
        }
    if len(found) != 1:
        listed = sorted(found) or sorted({*filter(None, states), *_first_words(checkpoint.tensors)})
        what = f"more than one encoder under the name {quote(name)}" if found else f"no encoder named {quote(name)}"
        raise NotFoundError(
            f"{checkpoint.reference}: there is {what}",
            found=", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else ""),
        )
    (picked,) = found.values()
    return replace(picked, reference=checkpoint.reference, origin=checkpoint.origin, picked=name, alternatives={})


def _prefixes(name: str, names: Iterable[str]) -> list[str]:
    """Return the prefixes that end in the words of `name`, none of which begins with another."""
    words = name.split(".")
    found: set[str] = set()
    for own in names:
        parts = own.split(".")
        places = (i for i in range(len(parts) - len(words)) if parts[i : i + len(words)] == words)
        if (first := next(places, None)) is not None:
            found.add("".join(f"{part}." for part in parts[: first + len(words)]))
    return [prefix for prefix in found if not any(prefix != other and prefix.startswith(other) for other in found)]


def _under(prefix: str, state: Checkpoint) -> Checkpoint:
    tensors = {name: span for name, span in state.tensors.items() if name.startswith(prefix)}
    unreadable = {name: why for name, why in state.unreadable.items() if name.startswith(prefix)}
    return replace(state, tensors=tensors, unreadable=unreadable)


def _first_words(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names if "." in name}
