"""Summarises a merge layer by layer, as plain rows for the terminal, the manifest and the model card. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.executor.drift import Drift
from speechft_merge.layouts.structure import PARTS
from speechft_merge.plan.plan import Action

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.layouts.structure import Location
    from speechft_merge.plan.plan import Plan, PlannedTensor

ENCODER = "encoder"
"""The stack that labels do not name."""


@dataclass(frozen=True, slots=True)
class LayerKey:
    """What a row of any table is about: a block, or a part outside of the blocks."""

    part: str
    stack: str = ENCODER
    """The stack that it belongs to, precedes or follows; empty for a head."""
    block: int | None = None
    """Index in its stack, from 0."""

    @classmethod
    def of(cls, location: Location) -> LayerKey:
        """Return the row that the tensors of a location count to."""
        return cls(location.part, location.stack or ("" if location.is_head else ENCODER), location.block)

    @property
    def label(self) -> str:
        """`3`, `cnn`, `final_norm`, `decoder.3`: blocks as `--layer-alpha` numbers them."""
        name = self.part if self.block is None else str(self.block)
        return name if self.stack in ("", ENCODER) else f"{self.stack}.{name}"

    def to_json(self) -> dict[str, Any]:
        """Return the three fields that name a row in every document; `layer` is null outside of the blocks."""
        return {"layer": self.block, "part": self.part, "stack": self.stack}


INPUT = LayerKey("input")
"""The input of the first block; in a comparison everything before the blocks counts to it."""
OUTPUT = LayerKey("output")
"""What an encoder gives, where more than a norm follows its last block; no weights count to it."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One block, or one part outside of the blocks; its fields are the keys in JSON and manifest."""

    layer: int | None
    part: str
    stack: str
    """As `LayerKey` has them."""
    alpha: float | None
    """The one alpha; None if tensors of the layer differ, or none has any."""
    alpha_min: float | None
    alpha_max: float | None
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

    @property
    def key(self) -> LayerKey:
        """What the row is about."""
        return LayerKey(self.part, self.stack, self.layer)

    @property
    def alpha_cell(self) -> str:
        """For tables: one value, or a range; `-` without any."""
        if self.alpha_min is None:
            return "-"
        return f"{self.alpha_min:.4g}" + ("" if self.alpha is not None else f" to {self.alpha_max:.4g}")

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON output has it."""
        return asdict(self)


def drift_cell(drift: float | None) -> str:
    """Return a drift as every table shows it."""
    return "-" if drift is None else f"{drift:.4f}"


def summarise_layers(plan: Plan, drifts: Mapping[str, Drift] | None = None) -> list[LayerRow]:
    """Return one row per layer: from the waveform up, the encoder before a decoder, heads last.

    Args:
        plan: the merge.
        drifts: as the merge measured them, by the plan's names; None before the merge.
    """
    groups: dict[LayerKey, list[PlannedTensor]] = {}
    for tensor in (*plan.tensors, *plan.left_out):
        groups.setdefault(LayerKey.of(tensor.location), []).append(tensor)
    return [_summarise(key, groups[key], drifts) for key in sorted(groups, key=_position)]


def _position(key: LayerKey) -> tuple[bool, bool, str, int, int]:
    block = -1 if key.block is None else key.block
    return key.part == "head", key.stack != ENCODER, key.stack, PARTS.index(key.part), block


def _summarise(key: LayerKey, tensors: list[PlannedTensor], drifts: Mapping[str, Drift] | None) -> LayerRow:
    alphas = sorted({_alpha(tensor.alpha, drifts, tensor.name) for tensor in tensors if tensor.alpha is not None})
    mixed = [tensor for tensor in tensors if tensor.action is Action.INTERPOLATED]
    measured = [drifts[tensor.name] for tensor in mixed if tensor.name in drifts] if drifts is not None else []
    return LayerRow(
        **key.to_json(),
        alpha=alphas[0] if len(alphas) == 1 else None,
        alpha_min=min(alphas, default=None),
        alpha_max=max(alphas, default=None),
        drift=Drift.relative(measured),
        interpolated=len(mixed),
        identical=None if drifts is None else sum(not drift.changed for drift in measured),
        copied=sum(tensor.action in (Action.COPIED, Action.TAKEN) for tensor in tensors),
        left_out=sum(tensor.action is Action.LEFT_OUT for tensor in tensors),
        parameters=sum(math.prod(t.shape) for t in tensors if t.action is not Action.LEFT_OUT),
        reasons=tuple(sorted({_reason(tensor) for tensor in tensors if tensor.reason})),
    )


def _alpha(alpha: float, drifts: Mapping[str, Drift] | None, name: str) -> float:
    """Return an alpha as it was applied: multiplied by the ratio that was estimated, if one was."""
    return alpha * drifts[name].ratio if drifts and name in drifts else alpha


def _reason(tensor: PlannedTensor) -> str:
    return tensor.reason if tensor.action is Action.INTERPOLATED else f"{tensor.action}: {tensor.reason}"
