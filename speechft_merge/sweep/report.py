"""Defines the report of a sweep: what was measured and decided, as plain data for JSON, CSV, tables, figures. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from speechft_merge.display import Table, Told
from speechft_merge.record.codec import as_csv, finite
from speechft_merge.sweep import words
from speechft_merge.sweep.grid import BASE, FINETUNED
from speechft_merge.sweep.intervals import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.sweep.decision import Certainty, Decision
    from speechft_merge.sweep.grid import Cell
    from speechft_merge.sweep.results import CellResult

SCHEMA = 1
"""Version of the JSON document."""
KINDS = ("value", "to_base", "to_finetuned", "to_pick")
"""What is known of a cell in each score: its value, and its differences to the base, the fine-tune and the pick."""
MARKS = {
    "*": "the pick",
    "~": "not told apart from it",
    "x": "misses a gate",
    ".": "another cell is nowhere worse, somewhere better",
}


@dataclass(frozen=True, repr=False)
class SweepReport(Told):
    """A sweep as far as it is done; `sweeping.collect` returns it.

    Args:
        models: role -> reference of the model.
        recipe: what every cell has in common.
        results: what was measured of each cell.
        decision: over the same cells, in the same order.
        probe: on what features were compared; None where features were not compared.
        missing: cells that are not done.
        warnings: what is to be known of the figures.
        versions: of the packages that made them.
    """

    models: dict[str, str]
    recipe: dict[str, Any]
    results: tuple[CellResult, ...]
    decision: Decision
    probe: dict[str, Any] | None = None
    missing: tuple[Cell, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        pick = "none" if self.decision.pick is None else self.decision.pick.label
        return f"<SweepReport of {len(self.results)} cells: pick {pick}>"

    def parts(self, verbose: int = 0) -> Iterator[Table | str]:
        """Yield the table of cells, what its marks mean, and what was decided."""
        titles, *rows = self.to_table()
        yield Table(titles, rows, sum(title in ("alpha", "tilt", "rules") for title in titles))
        yield self.legend
        yield from self.in_words()

    @cached_property
    def figures(self) -> dict[str, dict[str, dict[Cell, Estimate]]]:
        """Score -> those of `KINDS` that there are -> the figures of the cells."""
        references = dict(zip(KINDS[1:], (BASE, FINETUNED, self.decision.pick), strict=True))
        return {
            name: {"value": curve.estimates()}
            | {kind: curve.against(cell) for kind, cell in references.items() if cell is not None}
            for name, curve in self.decision.scores.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the document, without figures of single utterances; null where a figure is not defined."""
        return {
            "schema": SCHEMA,
            "models": self.models,
            "recipe": self.recipe,
            "probe": self.probe,
            "scores": {
                name: {"better": curve.better.value, "groups": len(curve.groups), "rough": curve.rough}
                for name, curve in self.decision.scores.items()
            },
            "cells": [self._cell(result) for result in self.results],
            "decision": _decision(self.decision),
            "words": self.in_words(),
            "missing": [cell.to_json() for cell in self.missing],
            "warnings": list(self.warnings),
            "versions": self.versions,
        }

    def to_records(self) -> list[dict[str, Any]]:
        """Return a flat dictionary for each cell and score, as `pandas.DataFrame` takes them.

        A cell without scores has one. Numbers are numbers, and None where a figure is not defined.
        """
        decision, found = self.decision, []
        for result in self.results:
            cell = result.cell
            about = cell.to_json() | {
                "layer_alpha": " ".join(cell.rules),
                "cka_base": finite(result.cka_base),
                "cka_finetuned": finite(result.cka_finetuned),
                "meets": decision.meets(cell),
                "dominated": cell in decision.dominated,
                "pick": cell == decision.pick,
            }
            for name, figures in self.figures.items() or [(None, {})]:
                better = None if name is None else decision.scores[name].better.value
                of_kinds = {kind: figures[kind][cell] if kind in figures else Estimate(math.nan) for kind in KINDS}
                ends = {
                    kind if end == "value" else f"{kind}_{end}": value
                    for kind, one in of_kinds.items()
                    for end, value in _estimate(one).items()
                }
                found.append(about | {"score": name, "better": better} | ends)
        return found

    def to_csv(self) -> str:
        """Return the records as CSV, with true and false."""
        words = {True: "true", False: "false"}
        return as_csv(
            [
                {key: words[value] if isinstance(value, bool) else value for key, value in record.items()}
                for record in self.to_records()
            ]
        )

    def to_table(self) -> list[list[str]]:
        """Return the table for people: titles, and a row for each cell; `legend` says what its marks mean."""
        cells = [result.cell for result in self.results]
        columns = {"alpha": [cell.method or f"{cell.alpha:g}" for cell in cells]}
        if any(cell.tilt for cell in cells):
            columns["tilt"] = [f"{cell.tilt:g}" for cell in cells]
        if any(cell.rules for cell in cells):
            columns["rules"] = [" ".join(cell.rules) for cell in cells]
        for name, figures in self.figures.items():
            columns[name] = [words.with_half(figures["value"][cell]) for cell in cells]
        if self.decision.features:
            columns["CKA to base"] = [words.figure(result.cka_base) for result in self.results]
        columns[""] = [self.marks(cell) for cell in cells]
        return [[*columns], *map(list, zip(*columns.values(), strict=True))]

    def in_words(self) -> list[str]:
        """Return what the decision is and how sure, in a few sentences."""
        return words.in_words(self.decision)

    @property
    def legend(self) -> str:
        """What the marks of the table mean, as far as there are some."""
        there = "".join(self.marks(result.cell) for result in self.results)
        return ", ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in there)

    def marks(self, cell: Cell) -> str:
        """Return those of `MARKS` that a cell has."""
        decision = self.decision
        same = decision.to_pick.get(cell)
        return "".join(
            mark
            for mark, is_so in {
                "*": cell == decision.pick,
                "~": same is not None and cell != decision.pick and same.low <= 0 <= same.high,
                "x": not decision.meets(cell),
                ".": cell in decision.dominated,
            }.items()
            if is_so
        )

    def _cell(self, result: CellResult) -> dict[str, Any]:
        cell, decision = result.cell, self.decision
        scores = {
            name: _estimate(figures["value"][cell])
            | {kind: _estimate(those[cell]) for kind, those in figures.items() if kind != "value"}
            for name, figures in self.figures.items()
        }
        gates = [
            {"gate": str(gate), "margin": _estimate(verdict.margin), "met": verdict.met, "certain": verdict.certain}
            for gate, verdict in zip(decision.rule.gates, decision.verdicts[cell], strict=True)
        ]
        return {
            **cell.to_json(),
            "scores": scores,
            "cka_base": finite(result.cka_base),
            "cka_finetuned": finite(result.cka_finetuned),
            "layers": [layer.to_json() for layer in result.layers],
            "gates": gates,
            "meets": decision.meets(cell),
            "dominated": cell in decision.dominated,
        }


def _decision(decision: Decision) -> dict[str, Any]:
    rule, certainty = decision.rule, decision.certainty
    return {
        "goal": rule.goal,
        "gates": [str(gate) for gate in rule.gates],
        "strict": rule.strict,
        "pick": _cell(decision.pick),
        "nearest": _cell(decision.nearest),
        "plateau": decision.plateau,
        "resampling": None if certainty is None else _certainty(certainty),
        "front": {
            "of": [*decision.axes],
            "cells": [cell.to_json() for cell in decision.front],
        },
        "heuristics": {name: cell.to_json() for name, cell in decision.heuristics.items()},
    }


def _certainty(certainty: Certainty) -> dict[str, Any]:
    return {
        "resamples": certainty.resamples,
        "seed": certainty.seed,
        "picks": [cell.to_json() | {"share": share} for cell, share in certainty.shares.items()],
        "none": certainty.none,
        "alphas": [finite(alpha) for alpha in certainty.alphas],
    }


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    return None if cell is None else cell.to_json()


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {name: finite(value) for name, value in asdict(estimate).items()}
