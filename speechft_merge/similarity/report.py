"""Defines the report: what was measured, as plain data for JSON, CSV, tables and figures. Pure."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from speechft_merge.record.codec import finite
from speechft_merge.record.layers import INPUT, drift_cell
from speechft_merge.similarity.measure import Similarity, mean_over_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.record.layers import LayerKey
    from speechft_merge.similarity.measure import LayerResult, Pair
    from speechft_merge.similarity.probe import ProbeRecord
    from speechft_merge.similarity.request import Estimator

SCHEMA = 2
"""Version of the JSON document."""

PAIRS: dict[str, Pair] = {"base_finetuned": (0, 1), "base_merged": (0, 2), "finetuned_merged": (1, 2)}
"""Key in the document -> the models, by their order base, finetuned, merged."""

LABELS = {
    "base_finetuned": "base, fine-tuned",
    "base_merged": "base, merged",
    "finetuned_merged": "fine-tuned, merged",
}


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """One row: the input of the first block, the output of a block, or that of the norm after them."""

    key: LayerKey
    pairs: dict[str, Similarity]
    """Figures by the keys of `PAIRS`; those with the merged model only where there is one."""
    drift: float | None
    """||finetuned - base|| / ||base|| of the weights that this layer adds to the one before: the merge's own figure."""
    null: float | None
    """The floor: CKA of the base with itself on other utterances; None if not requested."""


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison of two or three models on a probe."""

    models: dict[str, str]
    """Role -> reference of the model."""
    probe: ProbeRecord
    estimator: Estimator
    utterances: int
    frames: int
    layers: tuple[LayerSimilarity, ...]
    mean: dict[str, tuple[float, float]]
    """Mean over layers of each pair's CKA, and its standard error."""
    grids: dict[str, list[list[float]]]
    """CKA of every layer of the first model (rows) with every layer of the second; empty if not requested."""
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds that each step took; not in the document, which is the same from run to run."""

    def to_json(self) -> dict[str, Any]:
        """Return the document; null where a figure is not defined."""
        return {
            "schema": SCHEMA,
            "models": self.models,
            "probe": asdict(self.probe),
            "estimator": self.estimator,
            "utterances": self.utterances,
            "frames": self.frames,
            "layers": [_layer_document(layer) for layer in self.layers],
            "mean": {pair: {"cka": finite(cka), "se": finite(se)} for pair, (cka, se) in self.mean.items()},
            "grids": {pair: [[finite(value) for value in row] for row in grid] for pair, grid in self.grids.items()},
            "warnings": list(self.warnings),
            "versions": self.versions,
        }

    def to_csv(self) -> str:
        """Return CSV with one line for each layer and pair."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        figures = [*Similarity.__dataclass_fields__]
        writer.writerow([*INPUT.to_json(), "pair", *figures, "drift", "null"])
        for layer in self.layers:
            for pair, similarity in layer.pairs.items():
                values = [*(asdict(similarity)[name] for name in figures), layer.drift, layer.null]
                cells = ["" if finite(value) is None else value for value in values]
                writer.writerow([*layer.key.to_json().values(), pair, *cells])  # None is written as an empty cell
        return out.getvalue()

    def to_table(self) -> list[list[str]]:
        """Return the table for people: titles, a row for each layer, and the mean."""
        columns = {
            "layer": [*(layer.key.label for layer in self.layers), "mean"],
            "drift": [*(drift_cell(layer.drift) for layer in self.layers), "-"],
        }
        for pair, mean in self.mean.items():
            found = [layer.pairs[pair] for layer in self.layers]
            columns[LABELS[pair]] = [*(with_error(one.cka, one.se) for one in found), with_error(*mean)]
        if any(layer.null is not None for layer in self.layers):
            columns["floor"] = [*(with_error(layer.null) for layer in self.layers), "-"]
        return [[*columns], *map(list, zip(*columns.values(), strict=True))]

    def in_words(self) -> list[str]:
        """Return two sentences on what the figures mean for this merge."""
        return [_what_moved(self), _what_came_back(self)]


def make_rows(
    results: Mapping[LayerKey, LayerResult], drifts: Mapping[LayerKey, float | None], nulls: Sequence[float]
) -> tuple[LayerSimilarity, ...]:
    """Return the rows of a report: the figures of each layer, its drift, and its floor unless `nulls` is empty."""
    floors: Sequence[float | None] = nulls or [None] * len(results)
    return tuple(
        LayerSimilarity(key, {name: result.pairs[pair] for name, pair in PAIRS.items()}, drifts.get(key), null)
        for (key, result), null in zip(results.items(), floors, strict=True)
    )


def mean_by_pair(results: Mapping[LayerKey, LayerResult]) -> dict[str, tuple[float, float]]:
    """Return the mean CKA over layers of each pair of models, and its standard error."""
    return {name: mean_over_layers([*results.values()], pair) for name, pair in PAIRS.items()}


def _layer_document(layer: LayerSimilarity) -> dict[str, Any]:
    figures = {
        pair: {name: finite(value) for name, value in asdict(similarity).items()}
        for pair, similarity in layer.pairs.items()
    }
    null = {} if layer.null is None else {"null": finite(layer.null)}
    return {**layer.key.to_json(), **figures, "drift": finite(layer.drift), **null}


def _what_moved(report: Report) -> str:
    defined = [layer for layer in report.layers if math.isfinite(layer.pairs["base_finetuned"].cka)]
    if not defined:
        return "The features do not vary enough on this probe for a CKA; give more, and more varied, speech (--probe)."
    lowest = min(defined, key=lambda layer: layer.pairs["base_finetuned"].cka)
    found, mean = lowest.pairs["base_finetuned"], report.mean["base_finetuned"]
    if found.cka > 0.999:
        return f"Fine-tuning hardly changed the features: CKA to the base is {found.cka:.4f} or more in every layer."
    where = "in the input of the first block" if lowest.key == INPUT else f"in layer {lowest.key.label}"
    return (
        f"Fine-tuning moved the features most {where}: there CKA to the base is "
        f"{with_error(found.cka, found.se)}, on average over layers {with_error(*mean)}."
    )


def _what_came_back(report: Report) -> str:
    caution = "CKA tells how alike features are, not how well they serve a task: test the merge on yours."
    if "base_merged" not in report.mean:
        return caution
    before, after = report.mean["base_finetuned"][0], report.mean["base_merged"][0]
    if not (math.isfinite(before) and math.isfinite(after)) or before > 0.999:
        return caution
    share = (after - before) / (1 - before)
    return (
        f"The merge has {with_error(*report.mean['base_merged'])} on average: {share:.0%} of the way back to the base. "
        + caution
    )


def with_error(value: float | None, error: float = math.nan) -> str:
    """Return `0.812 ±0.034`; `0.812` without an error, `-` without a value."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.3f} ±{error:.3f}" if math.isfinite(error) else f"{value:.3f}"
