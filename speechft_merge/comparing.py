"""Compares a base, a fine-tune and their merge from end to end: opens, plans, measures; nothing is written."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from speechft_merge.arguments import or_default
from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.merging import open_models
from speechft_merge.options import MergeOptions
from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED, require_sound
from speechft_merge.plan.plan import make_plan
from speechft_merge.progress import Step, silent
from speechft_merge.recipe import Recipe
from speechft_merge.similarity.comparison import compare_models
from speechft_merge.similarity.models import ComparedModels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.progress import Progress
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest
    from speechft_merge.sources.reference import Reference


def compare(
    base: Reference, finetuned: Reference | Sequence[Reference], merged: Reference | None = None,
    request: ProbeRequest | None = None, *, recipe: Recipe | None = None, options: MergeOptions | None = None,
    progress: Progress = silent,
) -> Report:  # fmt: skip
    """Compare the features of a base, a fine-tune and their merge on a probe, layer by layer. Nothing is written.

    Args:
        base: the pre-trained model, see `open_merge`.
        finetuned: the fine-tune; of several, the first is compared, and all are merged.
        merged: a merged model; None to interpolate in memory by `recipe`.
        request: the probe, the estimator, the device.
        recipe: what is mixed in memory.
        options: only `download` matters.
        progress: told how far it is: `print`, for one.

    Raises:
        NotFoundError, CheckpointError, HubError, TemporaryError: a model or the probe cannot be read, or not run.
        MismatchError: the models do not fit each other, or give features that are not finite.
        UsageError: the recipe does not fit, or a package is missing.

    Example:
        >>> from speechft_merge import ProbeRequest, compare
        >>> report = compare("examples/pair/base", "examples/pair/finetuned", request=ProbeRequest(seconds=10))
        >>> [layer.key.label for layer in report.layers]
        ['input', '0', '1', '2', '3', '4', '5']
    """
    recipe, options = or_default(recipe, Recipe, "recipe"), or_default(options, MergeOptions, "options")
    progress(Step("opening the models"))
    with ExitStack() as stack:
        models, chosen = open_models(stack, base, finetuned, recipe, options)
        plan = make_plan(models[0], models[1:], recipe)
        require_sound([*chosen, *plan.findings], (ALLOW_PARTIAL, ALLOW_UNRELATED))
        made = None if merged is None else stack.enter_context(open_checkpoint(merged, options.download))
        return compare_models(ComparedModels(models[0], models[1:], plan, made), request, progress)
