"""Defines gates: what a cell must reach to be picked, set before the sweep. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from speechft_merge.arguments import require
from speechft_merge.errors import UsageError, quote
from speechft_merge.recipe.alpha import parse_number
from speechft_merge.sweep.grid import BASE, FINETUNED
from speechft_merge.sweep.intervals import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import numpy.typing as npt

    from speechft_merge.scoring.scores import Better
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.intervals import Curve

    Floats = npt.NDArray[np.float64]

REFERENCES = {"base": BASE, "finetuned": FINETUNED}
EXAMPLE = "phones>=base-0.01"

_TURNED = str.maketrans("<>", "><")
_GATE = re.compile(r"(?P<name>[^<>=]+)(?P<operator>[<>]=?)(?P<reference>[^<>=]+)")
_REFERENCE = re.compile(r"(?P<role>base|finetuned)\s*(?P<offset>[+-].+)?")
_ROUNDING = 1e-9
"""0.70 - 0.69 is a little more than 0.01 in floating point, yet `>=base-0.01` is met."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one cell at one gate."""

    margin: Estimate
    """How far the cell is on the right side; negative on the wrong one."""
    reach: float
    """What decides: the margin itself; if strict, and the score has units, the worse end of its interval."""
    met: bool
    certain: bool
    """Whether the whole interval meets the gate, or none of it."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a score: a number, or relative to that of the base or the fine-tune."""

    name: str
    operator: str
    role: str | None
    """`base`, `finetuned`, or None for a number alone."""
    offset: float
    """The number, or what is added to the reference's score."""

    def __str__(self) -> str:
        if self.role is None:
            return f"{self.name}{self.operator}{self.offset:.12g}"
        return f"{self.name}{self.operator}{self.role}" + (f"{self.offset:+.12g}" if self.offset else "")

    @property
    def sign(self) -> int:
        """1 where more is asked for, -1 where less."""
        return 1 if self.operator.startswith(">") else -1

    def bound(self, curve: Curve) -> float:
        """Return the bound as a score; nan if that of the reference is not known."""
        return self.offset + (0.0 if self.role is None else curve.value(REFERENCES[self.role]))

    def meets(self, margin: Floats | float) -> npt.NDArray[np.bool_] | bool:
        """Return whether margins are on the right side; never if nan."""
        return margin >= -_ROUNDING if self.operator.endswith("=") else margin > _ROUNDING

    def judge(self, curve: Curve, strict: bool = False) -> dict[Cell, Verdict]:
        """Judge each cell by its score, or if `strict` by the worse end of its interval.

        A score that has units, but too few or too equal ones for an interval, meets no strict gate.
        """
        estimates = curve.estimates() if self.role is None else curve.against(REFERENCES[self.role])
        margins = {cell: estimate.shifted(-self.offset, self.sign) for cell, estimate in estimates.items()}
        return {cell: self._verdict(margin, strict and bool(curve.groups)) for cell, margin in margins.items()}

    def margins(self, curve: Curve, values: Floats) -> Floats:
        """Return the margins of the cells in resamples of a score, both (resamples, cells)."""
        if self.role is not None:
            values = values - values[:, [curve.rows[REFERENCES[self.role]]]]
        return self.sign * (values - self.offset)

    def _verdict(self, margin: Estimate, strict: bool) -> Verdict:
        reach = margin.low if strict else margin.value
        met, least, most = (bool(self.meets(one)) for one in (reach, margin.low, margin.high))
        return Verdict(margin, reach, met, certain=math.isfinite(margin.low) and least == most)


def parse_gate(text: str) -> Gate:
    """Parse `NAME>=REFERENCE`: a number, or `base` or `finetuned`, `+` or `-` a number; also with `<=`, `>` and `<`.

    Raises:
        UsageError: it is something else.

    Example:
        >>> from speechft_merge import parse_gate
        >>> print(parse_gate("emotion >= base - 0.01"))
        emotion>=base-0.01
    """
    require(text, str, "a gate")
    found = _GATE.fullmatch(text)
    if not found or not found["name"].strip() or not found["reference"].strip():
        raise UsageError(f"{quote(text)} is not a gate", hint=f"write it as {EXAMPLE}, with >=, <=, > or <")
    name, operator, reference = (part.strip() for part in found.groups())
    relative = _REFERENCE.fullmatch(reference)
    if relative is None:
        return Gate(name, operator, None, _number(reference))
    offset = (relative["offset"] or "0").replace(" ", "")
    return Gate(name, operator, relative["role"], _number(offset))


def check_gates(gates: Iterable[Gate], known: Mapping[str, Better | None]) -> None:
    """Check that gates are of scores that there are, and do not ask for the worse.

    Args:
        gates: to be checked.
        known: name of a score, or of `FEATURES` if they are compared -> its direction; None where both make sense.

    Raises:
        UsageError: one is of another name, or asks for the worse.
    """
    for gate in gates:
        if gate.name not in known:
            raise UsageError(f"gate {gate}: no score is called {quote(gate.name)}", hint=_names(known))
        better = known[gate.name]
        if better is not None and better.sign != gate.sign:
            right = str(replace(gate, operator=gate.operator.translate(_TURNED)))
            raise UsageError(f"gate {gate} asks for a worse {gate.name}: {better} is better", hint=f"write {right}")


def check_goal(goal: str, scores: Iterable[str]) -> None:
    """Check that a score of this name is there to be made best.

    Raises:
        UsageError: it is not.
    """
    if goal not in scores:
        raise UsageError(f"no score is called {quote(goal)}", hint=_names(scores))


def _names(known: Iterable[str]) -> str:
    return f"known are {', '.join(known)}" if [*known] else "give scores to choose by"


def _number(text: str) -> float:
    return parse_number(text, "the bound of a gate", "0.6 or base-0.01")
