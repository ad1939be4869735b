"""What was measured, as plain data: for JSON, CSV, tables and figures. Pure; nothing here prints or draws."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from speechft_merge.similarity.measure import Similarity, mean_over_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.similarity.measure import LayerResult, Pair
    from speechft_merge.similarity.request import Estimator

SCHEMA = 1
"""Of the JSON document."""

PAIRS: dict[str, Pair] = {"base_finetuned": (0, 1), "base_merged": (0, 2), "finetuned_merged": (1, 2)}
"""Key in the document -> the models, by their order base, finetuned, merged."""

LABELS = {
    "base_finetuned": "base, fine-tuned",
    "base_merged": "base, merged",
    "finetuned_merged": "fine-tuned, merged",
}


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """One layer: 0 is the input of the first transformer block, k the output of block k - 1."""

    layer: int
    pairs: dict[str, Similarity]
    """By the keys of `PAIRS`; those with the merged model only where there is one."""
    drift: float | None
    """||finetuned - base|| / ||base|| of the weights that this layer adds to the one before."""
    null: float | None
    """The floor: CKA of the base with itself on other utterances; None if it was not asked for."""


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison of two or three models on a probe."""

    models: dict[str, str]
    """Role -> what the model was called."""
    probe: dict[str, Any]
    estimator: Estimator
    utterances: int
    frames: int
    layers: tuple[LayerSimilarity, ...]
    mean: dict[str, tuple[float, float]]
    """Mean over layers of each pair's CKA, and its standard error."""
    grids: dict[str, list[list[float]]]
    """CKA of every layer of the first model (rows) with every layer of the second; empty if not asked for."""
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long; not in the document, which is the same from run to run."""

    def to_json(self) -> dict[str, Any]:
        """The document; null where a figure is not defined."""
        return {
            "schema": SCHEMA,
            "models": self.models,
            "probe": self.probe,
            "estimator": self.estimator,
            "utterances": self.utterances,
            "frames": self.frames,
            "layers": [_layer_document(layer) for layer in self.layers],
            "mean": {pair: {"cka": _number(cka), "se": _number(se)} for pair, (cka, se) in self.mean.items()},
            "grids": {pair: [[_number(value) for value in row] for row in grid] for pair, grid in self.grids.items()},
            "warnings": list(self.warnings),
            "versions": self.versions,
        }

    def to_csv(self) -> str:
        """One line for each layer and pair."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        figures = [*Similarity.__dataclass_fields__]
        writer.writerow(["layer", "pair", *figures, "drift", "null"])
        for layer in self.layers:
            for pair, similarity in layer.pairs.items():
                values = [*(asdict(similarity)[name] for name in figures), layer.drift, layer.null]
                writer.writerow([layer.layer, pair, *("" if _number(value) is None else value for value in values)])
        return out.getvalue()

    def to_table(self) -> list[list[str]]:
        """For people: titles, a row for each layer, and the mean."""
        rows = [
            [str(layer.layer), *(with_error(layer.pairs[pair].cka, layer.pairs[pair].se) for pair in self.mean)]
            for layer in self.layers
        ]
        titles = ["layer", *(LABELS[pair] for pair in self.mean)]
        return [titles, *rows, ["mean", *(with_error(*mean) for mean in self.mean.values())]]

    def in_words(self) -> list[str]:
        """Two sentences on what the figures mean for this merge."""
        return [_what_moved(self), _what_came_back(self)]


def make_report(
    results: Sequence[LayerResult], drifts: Mapping[int, float], nulls: Sequence[float] = (), **told: Any
) -> Report:
    """Put the figures of all layers together; `told` is what `Report` has beside them."""
    pairs = {name: pair for name, pair in PAIRS.items() if pair in results[0].pairs}
    layers = tuple(
        LayerSimilarity(
            layer=number,
            pairs={name: result.pairs[pair] for name, pair in pairs.items()},
            drift=drifts.get(number),
            null=nulls[number] if nulls else None,
        )
        for number, result in enumerate(results)
    )
    mean = {name: mean_over_layers(results, pair) for name, pair in pairs.items()}
    return Report(layers=layers, mean=mean, **told)


def _layer_document(layer: LayerSimilarity) -> dict[str, Any]:
    figures = {
        pair: {name: _number(value) for name, value in asdict(similarity).items()}
        for pair, similarity in layer.pairs.items()
    }
    null = {} if layer.null is None else {"null": _number(layer.null)}
    return {"layer": layer.layer, **figures, "drift": _number(layer.drift), **null}


def _number(value: float | None) -> float | None:
    """JSON has no nan."""
    return None if value is None or not math.isfinite(value) else value


def _what_moved(report: Report) -> str:
    defined = [layer for layer in report.layers if math.isfinite(layer.pairs["base_finetuned"].cka)]
    if not defined:
        return "The features do not vary enough on this probe for a CKA; give more, and more varied, speech (--probe)."
    lowest = min(defined, key=lambda layer: layer.pairs["base_finetuned"].cka)
    found, mean = lowest.pairs["base_finetuned"], report.mean["base_finetuned"]
    if found.cka > 0.999:
        return f"Fine-tuning hardly changed the features: CKA to the base is {found.cka:.4f} or more in every layer."
    return (
        f"Fine-tuning moved the features most in layer {lowest.layer}: there CKA to the base is "
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


def with_error(value: float, error: float) -> str:
    """`0.812 ±0.034`, or without an error what is known; `-` where there is no value."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f} ±{error:.3f}" if math.isfinite(error) else f"{value:.3f}"
