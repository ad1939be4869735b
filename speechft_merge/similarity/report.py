"""Defines the report: what was measured, as plain data for JSON, CSV, tables and figures. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from speechft_merge.display import Table, Told
from speechft_merge.errors import amount
from speechft_merge.packages import needs_extra
from speechft_merge.record.codec import as_csv, finite
from speechft_merge.record.layers import INPUT, drift_cell
from speechft_merge.similarity.lines import Curves, plot_lines
from speechft_merge.similarity.measure import MeanSimilarity, Similarity, mean_over_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from speechft_merge.choices import Estimator
    from speechft_merge.record.layers import LayerKey
    from speechft_merge.similarity.floor import Floor
    from speechft_merge.similarity.measure import LayerResult, Pair
    from speechft_merge.similarity.probe import ProbeRecord

SCHEMA = 3
"""Version of the JSON document."""

PAIRS: dict[str, Pair] = {"base_finetuned": (0, 1), "base_merged": (0, 2), "finetuned_merged": (1, 2)}
"""Key in the document -> the models, by their order base, finetuned, merged."""

LABELS = {
    "base_finetuned": "base vs fine-tuned",
    "base_merged": "base vs merged",
    "finetuned_merged": "fine-tuned vs merged",
}

_MORE = ("frame", "biased", "procrustes", "cosine")
"""Measures that are told verbosely."""


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """One row: the input of the first block, the output of a block, or that of the norm after them."""

    key: LayerKey
    pairs: dict[str, Similarity]
    """Figures by the keys of `PAIRS`; those with the merged model only where there is one."""
    drift: float | None
    """||finetuned - base|| / ||base|| of the weights that this layer adds to the one before: the merge's own figure."""
    null: Floor | None
    """The floor: CKA of the base with itself on other groups; None if not requested."""

    @property
    def floor(self) -> dict[str, float | None]:
        """The floor by its keys in JSON; None where it was not requested."""
        figures = (None,) * 3 if self.null is None else (self.null.mean, self.null.sd, self.null.aligned)
        return dict(zip(("null", "null_sd", "null_aligned"), figures, strict=True))


@dataclass(frozen=True, slots=True, repr=False)
class Report(Told):
    """A comparison of two or three models on a probe; `compare` and `Merge.compare` return it.

    Args:
        models: role -> reference of the model.
        probe: the audio.
        estimator: of the CKA in the table.
        utterances: clips that the models took.
        groups: what these are as independent units of the estimator `group`.
        grouped_by: what told them, as `UsableClips` has it.
        frames: of all clips.
        layers: a row for each layer, with the figures of each pair of models.
        mean: mean over layers of each pair's CKA.
        grids: CKA of every layer of the first model (rows) with every layer of the second; empty if not requested.
        recipe: how the merged model was made, as a manifest has it; empty where that is not known.
        warnings: what is to be known of the figures.
        versions: of the packages that made them.
        seconds: seconds that each step took; not in the document.

    Example:
        >>> from speechft_merge import ProbeRequest, compare
        >>> report = compare("examples/pair/base", "examples/pair/finetuned", request=ProbeRequest(seconds=10))
        >>> [record["pair"] for record in report.to_records()][:3]
        ['base_finetuned', 'base_merged', 'finetuned_merged']
    """

    models: dict[str, str]
    probe: ProbeRecord
    estimator: Estimator
    utterances: int
    groups: int
    grouped_by: str
    frames: int
    layers: tuple[LayerSimilarity, ...]
    mean: dict[str, MeanSimilarity]
    grids: dict[str, list[list[float]]]
    recipe: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        means = ", ".join(f"{pair} {number(mean.cka)}" for pair, mean in self.mean.items())
        return f"<Report of {len(self.layers)} layers: {means}>"

    def parts(self, verbose: int = 0) -> Iterator[Table | str]:
        """Yield the table and how to read it; verbosely also the other measures."""
        titles, *rows = self.to_table()
        yield Table(titles, rows)
        if verbose:
            found = [(layer.key.label, LABELS[pair], one) for layer in self.layers for pair, one in layer.pairs.items()]
            rows = [[label, pair, *(f"{getattr(one, measure):.3f}" for measure in _MORE)] for label, pair, one in found]
            yield Table(["layer", "models", *_MORE], rows)
            if any(layer.null is not None for layer in self.layers):
                floors = [[layer.key.label, *map(number, layer.floor.values())] for layer in self.layers]
                yield Table(["layer", "floor", "sd of its draws", "aligned floor"], floors)
        yield (
            f"CKA ({self.estimator}) of the input of the first block and of each block's output; "
            f"probe {self.probe.origin}, sha256 {self.probe.sha256[:12]}: {self.of_what()}"
        )
        yield from self.in_words()

    def to_json(self) -> dict[str, Any]:
        """Return the document, a dictionary for `json.dumps`; null where a figure is not defined.

        It is the same from run to run on one machine with one number of threads; with another, the eighth digits move.
        """
        return {
            "schema": SCHEMA,
            "models": self.models,
            "recipe": self.recipe,
            "probe": asdict(self.probe),
            "estimator": self.estimator,
            "utterances": self.utterances,
            "groups": self.groups,
            "grouped_by": self.grouped_by,
            "frames": self.frames,
            "layers": [_layer_document(layer) for layer in self.layers],
            "mean": {pair: _figures(mean) for pair, mean in self.mean.items()},
            "grids": {pair: [[finite(value) for value in row] for row in grid] for pair, grid in self.grids.items()},
            "warnings": list(self.warnings),
            "versions": self.versions,
        }

    def to_records(self) -> list[dict[str, Any]]:
        """Return a flat dictionary for each layer and pair of models, as `pandas.DataFrame` takes them.

        Numbers are numbers, and None where a figure is not defined.
        """
        return [
            {**layer.key.to_json(), "pair": pair, **_figures(found)}
            | {name: finite(value) for name, value in {"drift": layer.drift, **layer.floor}.items()}
            for layer in self.layers
            for pair, found in layer.pairs.items()
        ]

    def to_csv(self) -> str:
        """Return the records as CSV."""
        return as_csv(self.to_records())

    def to_table(self) -> list[list[str]]:
        """Return the table for people: titles, a row for each layer, and the mean."""
        columns = {
            "layer": [*(layer.key.label for layer in self.layers), "mean"],
            "drift": [*(drift_cell(layer.drift) for layer in self.layers), "-"],
        }
        for pair, mean in self.mean.items():
            found = [layer.pairs[pair] for layer in self.layers]
            columns[LABELS[pair]] = [*map(with_error, found), with_error(mean)]
        if any(layer.null is not None for layer in self.layers):
            columns["floor"] = [*(number(layer.floor["null"]) for layer in self.layers), "-"]
        return [[*columns], *map(list, zip(*columns.values(), strict=True))]

    def plot(self, ax: Any = None) -> Any:
        """Draw layer against CKA with matplotlib.

        Args:
            ax: the `Axes` to draw into; None for a figure of its own, which a notebook shows.

        Returns:
            The `Axes`.

        Raises:
            UsageError: matplotlib is not installed.
        """
        if ax is None:
            with needs_extra("matplotlib"):
                from matplotlib import pyplot
            ax = pyplot.subplots(layout="constrained")[1]
        plot_lines(ax, self.curves)
        ax.legend(frameon=False)
        return ax

    @property
    def curves(self) -> Curves:
        """What `plot` draws."""
        return Curves(
            keys=[layer.key for layer in self.layers],
            pairs={pair: [layer.pairs[pair] for layer in self.layers] for pair in self.mean},
            labels=LABELS,
            floor=[math.nan if layer.null is None else layer.null.mean for layer in self.layers],
            measure="CKA" if self.estimator == "group" else f"CKA ({self.estimator})",
        )

    def of_what(self) -> str:
        """Return on what the figures are, and what their error bars are."""
        bars = "; ± is half a 95 % interval over the groups" if self.has_errors else ""
        clips, groups = amount(self.utterances, "clip"), amount(self.groups, "group")
        return f"{clips} of {groups} (by {self.grouped_by}), {self.frames} frames{bars}"

    @property
    def has_errors(self) -> bool:
        """Whether there are intervals."""
        return any(math.isfinite(found.se) for layer in self.layers for found in layer.pairs.values())

    def in_words(self) -> list[str]:
        """Return two sentences on what the figures mean for this merge."""
        return [_what_moved(self), _what_came_back(self)]


def make_rows(
    results: Mapping[LayerKey, LayerResult], drifts: Mapping[LayerKey, float | None], floors: Sequence[Floor]
) -> tuple[LayerSimilarity, ...]:
    """Return the rows of a report: the figures of each layer, its drift, and its floor unless `floors` is empty."""
    nulls: Sequence[Floor | None] = floors or [None] * len(results)
    return tuple(
        LayerSimilarity(key, {name: result.pairs[pair] for name, pair in PAIRS.items()}, drifts.get(key), null)
        for (key, result), null in zip(results.items(), nulls, strict=True)
    )


def mean_by_pair(results: Mapping[LayerKey, LayerResult]) -> dict[str, MeanSimilarity]:
    """Return the mean CKA over layers of each pair of models."""
    return {name: mean_over_layers([*results.values()], pair) for name, pair in PAIRS.items()}


def _layer_document(layer: LayerSimilarity) -> dict[str, Any]:
    pairs = {pair: _figures(similarity) for pair, similarity in layer.pairs.items()}
    floor = {} if layer.null is None else {name: finite(value) for name, value in layer.floor.items()}
    return {**layer.key.to_json(), **pairs, "drift": finite(layer.drift), **floor}


def _figures(found: Similarity | MeanSimilarity) -> dict[str, float | None]:
    return {name: finite(value) for name, value in asdict(found).items()}


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
        f"{with_error(found)}, on average over layers {with_error(mean)}."
    )


def _what_came_back(report: Report) -> str:
    caution = "CKA tells how alike features are, not how well they serve a task: test the merge on yours."
    if "base_merged" not in report.mean:
        return caution
    before, after = report.mean["base_finetuned"].cka, report.mean["base_merged"].cka
    if not (math.isfinite(before) and math.isfinite(after)) or before > 0.999:
        return caution
    share, average = (after - before) / (1 - before), with_error(report.mean["base_merged"])
    if share < 0:
        return f"The merge has {average} on average, less than the fine-tune: is it a merge of these two? {caution}"
    return f"The merge has {average} on average: {share:.0%} of the way back to the base. {caution}"


def with_error(found: Similarity | MeanSimilarity) -> str:
    """Return `0.812 ±0.034`, half of the 95 % interval; `0.812` where there is none, `-` without a value."""
    half = found.high - found.cka
    return f"{number(found.cka)} ±{half:.3f}" if math.isfinite(half) else number(found.cka)


def number(value: float | None) -> str:
    """Return `0.812`, or `-` without a value."""
    return "-" if value is None or not math.isfinite(value) else f"{round(value, 3) + 0.0:.3f}"  # never -0.000
