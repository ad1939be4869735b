"""What a merge did, layer by layer, as plain rows: pure, for the terminal, the manifest and the model card."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.executor.drift import Drift
from speechft_merge.layouts.structure import PARTS
from speechft_merge.plan.plan import Action

if TYPE_CHECKING:
    from speechft_merge.plan.plan import Plan, PlannedTensor


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, or one part outside of the layers."""

    layer: str
    alpha: str
    """One value, a range where tensors of the layer differ, or empty if none is interpolated."""
    drift: float | None
    """||finetuned - base|| / ||base|| over its interpolated tensors; None before the merge, or if nothing was read."""
    interpolated: int
    identical: int | None
    """Of these, tensors in which base and fine-tune do not differ; None before the merge."""
    copied: int
    left_out: int
    parameters: int
    reasons: tuple[str, ...]
    """Why tensors were not interpolated, in a few words."""

    def to_json(self) -> dict[str, Any]:
        """The row as the JSON output has it."""
        return asdict(self)


def summarise_layers(plan: Plan, drifts: dict[str, Drift] | None = None) -> list[LayerRow]:
    """One row a layer, from the waveform up."""
    groups: dict[tuple[int, str, int, str], list[PlannedTensor]] = {}
    for tensor in (*plan.tensors, *plan.left_out):
        groups.setdefault(_position(tensor), []).append(tensor)
    return [_summarise(key[3], groups[key], drifts) for key in sorted(groups)]


def _position(tensor: PlannedTensor) -> tuple[int, str, int, str]:
    """Sort key and label: parts before the layers, encoder, decoder, parts after."""
    place = tensor.location
    order = PARTS.index(place.part)
    label = place.part if place.block is None else str(place.block)
    if place.stack not in ("encoder", ""):
        label = f"{place.stack}.{label}"
    return order, place.stack, -1 if place.block is None else place.block, label


def _summarise(label: str, tensors: list[PlannedTensor], drifts: dict[str, Drift] | None) -> LayerRow:
    mixed = [tensor for tensor in tensors if tensor.action is Action.INTERPOLATED]
    alphas = sorted({tensor.alpha for tensor in mixed if tensor.alpha is not None})
    measured = [drifts[tensor.name] for tensor in mixed if tensor.name in drifts] if drifts is not None else []
    return LayerRow(
        layer=label,
        alpha=f"{alphas[0]:.4g}" + (f" to {alphas[-1]:.4g}" if len(alphas) > 1 else "") if alphas else "",
        drift=Drift.relative(measured),
        interpolated=len(mixed),
        identical=None if drifts is None else sum(not drift.changed for drift in measured),
        copied=sum(tensor.action in (Action.COPIED, Action.TAKEN) for tensor in tensors),
        left_out=sum(tensor.action is Action.LEFT_OUT for tensor in tensors),
        parameters=sum(math.prod(t.shape) for t in tensors if t.action is not Action.LEFT_OUT),
        reasons=tuple(sorted({_reason(tensor) for tensor in tensors if tensor.reason})),
    )


def _reason(tensor: PlannedTensor) -> str:
    return tensor.reason if tensor.action is Action.INTERPOLATED else f"{tensor.action}: {tensor.reason}"
