"""Shows how a base and its fine-tunes match, for `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.sink import Shown
from speechft_merge.display import Table, in_words, layer_parts
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.record.layers import summarise_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechft_merge.plan.plan import Action, Plan


def show_match(plan: Plan, findings: Sequence[Finding], models: Sequence[str]) -> Shown:
    """Return the layers and how much of the base they cover, what a merge would refuse, and with `-v` every tensor.

    Args:
        plan: what a merge of them would do.
        findings: what speaks against it, and what is to be noted.
        models: the references.
    """
    return Shown(partial(_document, plan, findings, models), partial(_parts, plan, findings))


def _document(plan: Plan, findings: Sequence[Finding], models: Sequence[str]) -> dict[str, Any]:
    return {
        "base": models[0],
        "finetuned": list(models[1:]),
        "prefixes": [{"base": a.base_prefix, "finetuned": a.finetuned_prefix} for a in plan.alignments],
        "counts": plan.counts,
        "coverage": min(plan.coverages),
        "findings": [asdict(finding) for finding in findings],
        "layers": [row.to_json() for row in summarise_layers(plan)],
        "tensors": {
            tensor.name: {
                "action": tensor.action.value,
                "reason": tensor.reason,
                "part": tensor.location.part,
                "layer": tensor.location.block,
                "finetuned": _partner_names(plan, tensor.name),
            }
            for tensor in plan.tensors
        },
        "left_out": [{"tensor": tensor.name, "reason": tensor.reason} for tensor in plan.left_out],
    }


def _parts(plan: Plan, findings: Sequence[Finding], verbose: int) -> Iterator[Table | str]:
    yield from layer_parts(summarise_layers(plan))
    for alignment in plan.alignments:
        yield f"names: base {alignment.base_prefix + '*'!r} is fine-tuned {alignment.finetuned_prefix + '*'!r}"
    yield f"{in_words(plan.counts)}; the fine-tune has {min(plan.coverages):.1%} of the base's parameters"
    for finding in findings:
        allowed = f" (unless {finding.allowed_by} is passed)" if finding.allowed_by else ""
        if finding.level is Level.REFUSAL:
            yield f"a merge is refused{allowed}: {finding.text}" + (f"; {finding.hint}" if finding.hint else "")
        else:
            yield f"{finding.level}: {finding.text}"
    if verbose:
        rows = [[t.name, _becomes(t.action, t.reason), ", ".join(_odd_names(plan, t.name))] for t in plan.tensors]
        rows += [[t.name, _becomes(t.action, t.reason), ""] for t in plan.left_out]
        yield Table(["tensor", "becomes", "other name in the fine-tune"], rows)


def _becomes(action: Action, reason: str) -> str:
    return f"{action.value}: {reason}" if reason else action.value


def _odd_names(plan: Plan, name: str) -> list[str]:
    """Return the names of partners that are not the same but for the prefixes, which are told above."""
    usual = {a.finetuned_prefix + name.removeprefix(a.base_prefix) for a in plan.alignments}
    return [partner for partner in _partner_names(plan, name) if partner not in usual]


def _partner_names(plan: Plan, name: str) -> list[str]:
    return [alignment.pairs[name] for alignment in plan.alignments if name in alignment.pairs]
