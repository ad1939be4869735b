"""Says what figures show: captions, and descriptions for those who do not see them. Pure."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from speechft_merge.foreign import clean
from speechft_merge.record.card import short
from speechft_merge.similarity.drawing import as_word
from speechft_merge.similarity.report import LABELS, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.similarity.report import Report

LONGEST = 36
"""Characters of a model's name in a caption."""
RULES = 3
"""Rules for layers that a caption has room for."""


def name_model(reference: str) -> str:
    """Return a model's name for a caption: of a path the last part, a commit cut short, the middle of the rest."""
    name = re.sub(r"@([0-9a-f]{7})[0-9a-f]{33}\b", r"@\1", clean(short(reference)))
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def name_models(models: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
    """Return `base: hubert-base; fine-tuned: hubert-asr; merged at alpha 0.25`.

    Args:
        models: role -> reference.
        recipe: of the merge, as `Recipe.to_json` has it; empty where it is not known.
    """
    words = [f"{as_word(role)}: {name_model(name)}" for role, name in models.items()]
    if recipe and "merged" in models:
        words[-1] = f"merged at {name_recipe(recipe)}"
    return "; ".join(words)


def name_recipe(recipe: Mapping[str, Any]) -> str:
    """Return `alpha 0.25`, or `alpha 1, cnn=0 and 4 more rules (model-stock)`."""
    rules = recipe["layer_alpha"]
    more = f" and {len(rules) - RULES} more rules" if len(rules) > RULES else ""
    method = "" if recipe["method"] == "mean" else f" ({recipe['method']})"
    return ", ".join([f"alpha {recipe['alpha']:g}", *rules[:RULES]]) + more + method


def caption(report: Report) -> str:
    """Return the models, how the merge was made, and on what speech was measured how."""
    probe = "the built-in probe" if report.probe.origin == "built-in" else "a probe"
    return (
        f"{name_models(report.models, report.recipe)}. CKA (estimator {report.estimator}) on {probe} of "
        f"{report.probe.seconds:.0f} s, {report.utterances} clips of {report.groups} groups."
    )


def describe_lines(report: Report) -> str:
    """Return where each line of the figure begins and ends, and where it is lowest."""
    return " ".join(["CKA by layer.", *(_describe_line(report, pair) for pair in report.mean)])


def _describe_line(report: Report, pair: str) -> str:
    found = {layer.key.label: layer.pairs[pair].cka for layer in report.layers}
    found = {label: value for label, value in found.items() if math.isfinite(value)}
    label = LABELS[pair].capitalize()
    if not found:
        return f"{label}: not defined."
    first, *_, last = [*found, *found]
    told = {first: "first", min(found, key=found.__getitem__): "lowest", last: "last"}
    values = [f"{word} {number(found[where])} (layer {where})" for where, word in told.items()]
    return f"{label}: {', '.join(values)}, mean {number(report.mean[pair].cka)}."


def describe_grids(report: Report) -> str:
    """Return how alike equal layers are on average, and which others are more alike."""
    return " ".join(["CKA of every layer with every other.", *map(_describe_grid, report.grids, report.grids.values())])


def _describe_grid(pair: str, grid: list[list[float]]) -> str:
    equal = [row[place] for place, row in enumerate(grid) if math.isfinite(row[place])]
    others = [value for i, row in enumerate(grid) for j, value in enumerate(row) if i != j and math.isfinite(value)]
    means = [number(sum(values) / len(values)) if values else "-" for values in (equal, others)]
    return (
        f"{LABELS[pair].capitalize()}: {means[0]} between equal layers, {means[1]} between different ones, on average."
    )
