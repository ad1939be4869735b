"""Makes of what was opened the models that a plan pairs: whole ones, of one encoder each, of separate projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.adapters.folding import fold_adapters
from speechft_merge.plan.encoders import choose_encoders
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.plan.packed import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.recipe.recipe import Recipe


def prepare_models(
    base: Checkpoint, finetuned: Sequence[Checkpoint], recipe: Recipe
) -> tuple[list[Checkpoint], list[Finding]]:
    """Return base and fine-tunes as they are paired, and what is found where a file has an adapter, or encoders.

    Args:
        base: the pre-trained model.
        finetuned: fine-tunes of it, adapters among them.
        recipe: whose class is written, and the scale of adapters that do not tell it.

    Raises:
        MismatchError, UsageError: see `fold_adapters`.
    """
    whole, notes = fold_adapters(base, finetuned, recipe.lora_alpha)
    chosen, findings = choose_encoders(base, whole)
    return unpack(chosen, recipe.keep_head), [*(Finding(Level.NOTE, note) for note in notes), *findings]
