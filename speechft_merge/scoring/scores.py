"""Defines a score: a figure of one model on one set of data, with what each utterance added to it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Better(StrEnum):
    """Which direction of a score is better."""

    HIGHER = "higher"
    LOWER = "lower"

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self is Better.HIGHER else -1


@dataclass(frozen=True, slots=True)
class Unit:
    """What one utterance, or other item of a test set, adds to a score: the score is sum of amounts / sum of totals."""

    id: str
    group: str
    """What is resampled as a whole: the speaker or recording; its own id where none is known."""
    amount: float
    """Right answers, errors, or a value."""
    total: float = 1.0
    """Out of how many; 1 for a value."""


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one model."""

    name: str
    better: Better
    value: float
    units: tuple[Unit, ...] = ()
    """What it was summed from; empty where only the figure is known: it has no error bar then."""

    @classmethod
    def of(cls, name: str, better: Better, units: tuple[Unit, ...]) -> Score:
        """Return the score of some units: sum of amounts / sum of totals."""
        total = math.fsum(unit.total for unit in units)
        return cls(name, better, math.fsum(unit.amount for unit in units) / total if total else math.nan, units)

    def to_json(self) -> dict[str, Any]:
        """Return it as a sweep's folder keeps it; a unit is a list."""
        units = [[unit.id, unit.group, unit.amount, unit.total] for unit in self.units]
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "better": self.better.value, "value": value, "units": units}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Score:
        """Return what `to_json` made."""
        value = math.nan if content["value"] is None else float(content["value"])
        units = tuple(Unit(str(id), str(group), float(one), float(of)) for id, group, one, of in content["units"])
        return cls(str(content["name"]), Better(content["better"]), value, units)
