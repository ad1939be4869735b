"""Decides on a merge as a whole: the plan, and whether what was found about the models allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.plan.findings import require_sound
from speechft_merge.plan.plan import make_plan
from speechft_merge.plan.relation import judge_relations, measure_relation

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.plan.findings import Finding
    from speechft_merge.plan.plan import Plan
    from speechft_merge.plan.relation import Relation
    from speechft_merge.recipe.recipe import Recipe


class Decision(NamedTuple):
    """What becomes of each tensor, and what is to be said about it."""

    plan: Plan
    relations: tuple[Relation, ...]
    """How close each fine-tune is to the base, measured on a sample of the weights."""
    findings: tuple[Finding, ...]


def decide(
    models: Sequence[Checkpoint], known: Sequence[Finding], recipe: Recipe, allowed: Collection[str]
) -> Decision:
    """Plan the merge of a base and fine-tunes of it.

    Args:
        models: the base, then the fine-tunes.
        known: what was found before.
        recipe: what is mixed.
        allowed: the options of refusals that are merged all the same.

    Raises:
        MismatchError: the models do not belong together.
        UsageError: see `make_plan`.
    """
    plan = make_plan(models[0], models[1:], recipe)
    findings = require_sound([*known, *plan.findings], allowed)
    relations = tuple(measure_relation(plan, which) for which in range(len(models) - 1))
    return Decision(plan, relations, findings + require_sound(judge_relations(models, relations), allowed))
