"""Converts dataclasses to JSON and back, checked: a record is declared once, by its fields; figures; and CSV."""

from __future__ import annotations

import csv
import io
import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Record = TypeVar("Record")


def finite(value: float | None) -> float | None:
    """Return None for nan and infinity, which JSON lacks."""
    return None if value is None or not math.isfinite(value) else value


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records of the same keys as CSV: a line of keys, then one for each; None is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*records[0]] if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def from_json(kind: type[Record], document: object) -> Record:
    """Make a record from a JSON document. Keys that it does not know are ignored, so that later versions can add some.

    A field that has a default may be missing: one of a later version.

    Raises:
        ValueError: another key is missing, or one holds a value of another type, or one that the record refuses.
    """
    made: Record = _read(kind, document, getattr(kind, "__name__", "the list"))
    return made


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_record(kind, value, where)
    if origin in (types.UnionType, Union):
        return None if value is None else _read(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): _read(arguments[1], item, where) for key, item in value.items()}
    if kind is float and type(value) is int:
        return _as_float(value, where)
    if kind is Any or type(value) is kind:
        return value
    raise ValueError(f"{where} holds a {type(value).__name__}")


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where} holds a number that is too large") from error


def _read_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name in value or field.default is MISSING]
    missing = [name for name in names if name not in value]
    if missing:
        raise ValueError(f"{where} lacks {missing[0]}")
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in names})
