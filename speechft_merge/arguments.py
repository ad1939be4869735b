"""Checks the arguments of the library's functions: a wrong one is told in words, before anything is read."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from speechft_merge.errors import UsageError, quote

Kind = TypeVar("Kind")
PathText = str | PathLike[str]
"""What the library takes for the path of a file or a folder."""

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
_LIKE: dict[Any, Any] = {int: Integral, float: Real}
_HINTS = {
    "recipe": "write Recipe(alpha=0.4, ...), or alpha=0.4 alone; read_recipe(path) reads a file",
    "options": "write MergeOptions(overwrite=True, ...)",
    "request": "write ProbeRequest(paths=..., seconds=60)",
}


def or_default(value: Kind | None, kind: type[Kind], name: str) -> Kind:
    """Return an argument, of None the default of its kind.

    Raises:
        UsageError: it is of another kind.
    """
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise _odd(name, f"a {kind.__name__}", value, _HINTS.get(name))
    return value


def require_fields(record: Any) -> None:
    """Refuse a record, one of a dataclass, with a field that is not of the type that it is annotated with.

    Raises:
        UsageError: one is not.
    """
    kind: Any = type(record)
    hints = _hints_of(kind)
    for field in fields(record):
        require(getattr(record, field.name), hints[field.name], field.name)


def require(value: object, kind: Any, name: str) -> None:
    """Refuse an argument that is not of a type, which may be any that `require_fields` knows.

    Raises:
        UsageError: it is not.
    """
    if not _fits(value, kind):
        raise _odd(name, _in_words(kind), value)


def path_of(value: object, name: str) -> Path:
    """Return a path that is given as one or as text.

    Raises:
        UsageError: it is neither.
    """
    return Path(text_path(value, name)).expanduser()


def text_path(value: object, name: str) -> str:
    """Return a path, or what a model is called, as text.

    Raises:
        UsageError: it is neither text nor a path.
    """
    text = fspath(value) if isinstance(value, PathLike) else value
    if isinstance(text, str):
        return text
    loaded = isinstance(value, Mapping) or hasattr(value, "state_dict")
    hint = "merge_state_dicts, interpolate_ and LiveMerge merge models that are loaded" if loaded else None
    raise _odd(name, "text or a path", value, hint)


def listed(value: object) -> list[Any]:
    """Return one path or text, or several of these, as a list of them."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [*value]
    return [value]


def _odd(name: str, expected: str, value: object, hint: str | None = None) -> UsageError:
    return UsageError(f"{name} must be {expected}", found=f"{type(value).__name__} {quote(value)}", hint=hint)


@cache
def _hints_of(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: object, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:  # which of these words, the record says itself
        return isinstance(value, str)
    if origin in (tuple, Sequence):
        several = isinstance(value, tuple if origin is tuple else (list, tuple))
        return several and all(_fits(one, arguments[0]) for one in value)  # type: ignore[attr-defined]
    if origin in (Mapping, dict):
        return isinstance(value, Mapping)
    if kind is Any or origin is Callable:
        return kind is Any or callable(value)
    if getattr(kind, "_is_protocol", False):
        return True
    return isinstance(value, _LIKE.get(kind, origin or kind)) and (kind is bool or not isinstance(value, bool))


def _in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return " or ".join(dict.fromkeys(map(_in_words, arguments)))
    if origin is Literal:
        return _WORDS[str]
    if origin in (tuple, Sequence):
        return f"a list, each {_in_words(arguments[0])}"
    if origin in (Mapping, dict):
        return "a dictionary"
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind, "a path" if origin is PathLike else f"{'an' if name[:1] in 'AEIO' else 'a'} {name}")
