"""Judges whether base and fine-tune were given in the wrong order."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.labs import S3PRL_FINETUNE
from speechft_merge.layouts.heads import TASKS
from speechft_merge.layouts.structure import is_decoder
from speechft_merge.plan.findings import ALLOW_UNRELATED, Finding, Level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.layouts.alignment import Alignment
    from speechft_merge.layouts.naming import TensorName

_TRACES = frozenset(["training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt"])
"""What transformers' Trainer leaves beside the weights; published models have none of it."""


def judge_order(base: Checkpoint, finetuned: Checkpoint, alignment: Alignment) -> list[Finding]:
    """Return a reason to refuse if only the base looks fine-tuned: it has a task's head, or a trainer's traces.

    The head of an encoder-decoder says nothing: it is of pre-training as well.
    """
    heads = _task_heads(alignment.base_names)
    if _task_heads(alignment.finetuned_names) or any(map(is_decoder, base.naming.stacks)):
        heads = []
    traces = [] if _traces(finetuned) or _task_heads(alignment.finetuned_names) else _traces(base)
    if not heads and not traces:
        return []
    evidence = f"a task's head ({', '.join(heads)})" if heads else f"what a trainer leaves ({', '.join(traces)})"
    text = (
        f"the base {base.reference} has {evidence} and the fine-tune {finetuned.reference} has none: are they swapped?"
    )
    swapped = shlex.join(["speechft-merge", finetuned.reference, base.reference])
    return [Finding(Level.REFUSAL, text, f"in the other order: {swapped}", ALLOW_UNRELATED)]


def _task_heads(names: Mapping[str, TensorName]) -> list[str]:
    words = (name.canonical.partition(".")[0] for name in names.values() if name.is_head)
    return list(dict.fromkeys(word for word in words if word in TASKS))


def _traces(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.origin is not None and checkpoint.origin.lab == S3PRL_FINETUNE:
        return [S3PRL_FINETUNE]
    there = checkpoint.folder.names() if checkpoint.folder is not None else []
    return [name for name in there if name in _TRACES]
