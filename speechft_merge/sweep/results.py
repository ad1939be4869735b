"""Defines what is known of a cell when it is done; one JSON line each. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from speechft_merge.record.codec import finite
from speechft_merge.record.layers import LayerKey
from speechft_merge.scoring.scores import Score
from speechft_merge.sweep.grid import Cell


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer of the encoder of a cell."""

    key: LayerKey
    cka_base: float
    """CKA to the base; nan where it is not defined."""
    cka_finetuned: float
    drift: float | None
    """||merged - base|| / ||base|| of the weights that this layer adds to the one before."""

    def to_json(self) -> dict[str, Any]:
        """Return the row; null where a figure is not defined."""
        figures = {"cka_base": self.cka_base, "cka_finetuned": self.cka_finetuned, "drift": self.drift}
        return self.key.to_json() | {name: finite(value) for name, value in figures.items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LayerFigures:
        """Return what `to_json` made."""
        key = LayerKey(content["part"], content["stack"], content["layer"])
        base, finetuned, drift = (
            None if content[name] is None else float(content[name]) for name in ("cka_base", "cka_finetuned", "drift")
        )
        return cls(key, math.nan if base is None else base, math.nan if finetuned is None else finetuned, drift)


@dataclass(frozen=True, slots=True)
class CellResult:
    """What was measured of one cell."""

    cell: Cell
    scores: tuple[Score, ...] = ()
    layers: tuple[LayerFigures, ...] = ()
    """Empty where features were not compared."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Step -> seconds that it took."""

    @property
    def cka_base(self) -> float:
        """Mean over layers of CKA to the base; nan without any."""
        return _mean([layer.cka_base for layer in self.layers])

    @property
    def cka_finetuned(self) -> float:
        """Likewise, to the fine-tune."""
        return _mean([layer.cka_finetuned for layer in self.layers])

    def to_json(self) -> dict[str, Any]:
        """Return the cell's document."""
        return {
            "cell": self.cell.to_json(),
            "scores": [score.to_json() for score in self.scores],
            "layers": [layer.to_json() for layer in self.layers],
            "seconds": {step: round(seconds, 3) for step, seconds in self.seconds.items()},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CellResult:
        """Return what `to_json` made."""
        return cls(
            Cell.from_json(content["cell"]),
            tuple(map(Score.from_json, content["scores"])),
            tuple(map(LayerFigures.from_json, content["layers"])),
            {str(step): float(seconds) for step, seconds in content["seconds"].items()},
        )


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
