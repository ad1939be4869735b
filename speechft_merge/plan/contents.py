"""Judges whether a model computes with its plain weights: with adapters, quantisers or shards it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.adapters.settings import CONFIG as ADAPTER
from speechft_merge.checkpoints.companions import CONFIG, read_companion_json
from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.errors import amount, quote
from speechft_merge.layouts.elsewhere import find_elsewhere
from speechft_merge.plan.findings import Finding, Level

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan

_SHOWN = 6
"""Words that a message lists."""


def judge_contents(model: Checkpoint) -> list[Finding]:
    """Return a reason to refuse a model if its plain weights are not what it computes with."""
    coded = [name for name, span in model.tensors.items() if _is_code(name, span)]
    found = find_elsewhere(model.naming.full, model.shapes, coded)
    if found is not None:
        where = " in ".join(filter(None, (_listed(found.words), _listed(found.modules))))
        told = f"{amount(len(found.names), 'tensor')} such as {quote(found.names[0])}" + (
            f" ({where})" if where else ""
        )
        return [Finding(Level.REFUSAL, f"{model.reference} holds {found.kind}: {told}", found.hint)]
    folder = None if model.is_named_file or model.adapter is not None else model.folder
    if folder is not None and ADAPTER in folder.names():
        text = (
            f"{model.reference} has an adapter beside its weights ({ADAPTER}), which transformers loads on top of them"
        )
        return [Finding(Level.REFUSAL, text, f"to merge the weights without it, name their file, {model.file}")]
    if "quantization_config" in read_companion_json(model, CONFIG):
        text = f"{model.reference} is quantised: its config.json has a quantization_config"
        return [Finding(Level.REFUSAL, text, "load it in full precision (or dequantize() it) and save it again")]
    return []


def _is_code(name: str, span: TensorSpan) -> bool:
    """Return whether a tensor holds weights as whole numbers, or in 8 bits, by its name and type."""
    if span.dtype.interpolated or span.dtype in (DType.BOOL, DType.C64):
        return False
    named = name.endswith("weight") or (span.dtype is DType.I8 and len(span.shape) > 1)
    return named or span.dtype.continuous


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")
