"""Turns what a user's command or function answers, a number or records of utterances, into scores. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import ScoreError, UsageError, quote
from speechft_merge.scoring.scores import Better, Score, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = '{"id": ..., "group": ..., "correct": ..., "total": ...}, or "errors" for "correct", or "value" alone'
"""What a record looks like, for hints; the group is the id where it is not given."""
_AMOUNTS = {"correct": Better.HIGHER, "errors": Better.LOWER, "value": None}
"""Key of a record -> the better direction; None as the user says."""


def parse_name(text: str) -> tuple[str, Better]:
    """Parse `NAME` or `NAME:lower`, the name of a score and which direction of it is better.

    Raises:
        UsageError: it is neither.
    """
    name, colon, direction = text.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UsageError(f"{quote(name)} cannot name a score", hint="use letters, digits and _, a letter first")
    if colon and direction not in [*Better]:
        raise UsageError(f"{quote(direction)} is no direction of a score", hint=f"write {name}:lower or {name}:higher")
    return name, Better(direction) if colon else Better.HIGHER


def sub_score(name: str, sub: object) -> str:
    """Return `NAME.SUB`, the name of one of several scores of one answer.

    Raises:
        ScoreError: `sub` cannot be a name.
    """
    if not (isinstance(sub, str) and re.fullmatch(r"[\w.]+", sub, re.ASCII)):
        raise ScoreError(f"{name}: {quote(sub)} cannot name a score", hint="use letters, digits and _")
    return f"{name}.{sub}"


def score_of_number(name: str, better: Better, value: object) -> Score:
    """Return the score of which only the figure is known.

    Raises:
        ScoreError: it is not a finite number.
    """
    return Score(name, better, _number(value, name))


def scores_of_records(name: str, better: Better, records: Iterable[object]) -> list[Score]:
    """Return the scores of records of utterances: `name`, and `name.SUB` for those that have `"score": SUB`.

    Args:
        name: of the score.
        better: direction of a `value`; more of `correct` and less of `errors` are better in any case.
        records: as `RECORD` has them, or other objects, which are refused.

    Raises:
        ScoreError: a record is none, ids of a score repeat, its records differ in kind, or there are none.
    """
    kinds: dict[str, str] = {}
    units: dict[str, dict[str, Unit]] = {}
    for number, record in enumerate(records, 1):
        where = f"{name}: record {number}"
        if not isinstance(record, Mapping):
            raise ScoreError(f"{where} is {quote(record)}, not a record", hint=f"give {RECORD}")
        kind, unit = _unit(record, where)
        full = sub_score(name, record["score"]) if "score" in record else name
        if kinds.setdefault(full, kind) != kind:
            raise ScoreError(f"{where} has {kind!r}, those before it {kinds[full]!r}")
        if unit.id in units.setdefault(full, {}):
            raise ScoreError(f"{where}: the id {quote(unit.id)} occurs twice")
        units[full][unit.id] = unit
    if not units:
        raise ScoreError(f"{name}: there is no record", hint=f"give a number, or records such as {RECORD}")
    if better is Better.LOWER and "correct" in kinds.values():
        raise ScoreError(f"{name}: more of 'correct' is better, not less", hint=f"write {name} without :lower")
    return [Score.of(full, _AMOUNTS[kinds[full]] or better, (*each.values(),)) for full, each in units.items()]


def _unit(record: Mapping[Any, Any], where: str) -> tuple[str, Unit]:
    """Return which of `_AMOUNTS` a record has, and its unit."""
    kinds = [kind for kind in _AMOUNTS if kind in record]
    if len(kinds) != 1 or ("total" in record) != (kinds != ["value"]):
        raise ScoreError(f"{where} does not say how much out of how many", found=quote(dict(record)), hint=RECORD)
    (kind,) = kinds
    name, group = record.get("id"), record.get("group")
    for key, text in (("id", name), ("group", name if group is None else group)):
        if isinstance(text, bool) or not isinstance(text, (str, int)):
            raise ScoreError(f"{where}: its {key} is {quote(text)}, not text or a whole number")
    amount = _number(record[kind], f"{where}: {kind}")
    total = _number(record.get("total", 1), f"{where}: total")
    if total <= 0:
        raise ScoreError(f"{where}: a total of {total:g} is not above 0")
    if (kind != "value" and amount < 0) or (kind == "correct" and amount > total):
        raise ScoreError(f"{where}: {amount:g} {kind} out of {total:g}")
    return kind, Unit(str(name), str(name if group is None else group), amount, total)


def _number(value: object, what: str) -> float:
    """Return a number as float, also one of numpy, or a tensor of no dimensions."""
    if getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ScoreError(f"{what} is {quote(value)}, not a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        finite = False
    if not finite:
        raise ScoreError(f"{what} is {quote(value)}, not a finite number")
    return float(value)
