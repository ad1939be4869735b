"""Judges whether base and fine-tune were given in the wrong order."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.labs import LIGHTNING, S3PRL_FINETUNE
from speechft_merge.layouts.heads import TASKS, is_head
from speechft_merge.layouts.language_model import is_language_model
from speechft_merge.layouts.structure import is_decoder
from speechft_merge.plan.findings import ALLOW_UNRELATED, Finding, Level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.layouts.alignment import Alignment
    from speechft_merge.layouts.naming import TensorName

_TASKS = TASKS | frozenset(
    "fc linear lin head heads output outputs output_layer out cls ctc ctc_lin ctc_linear ctc_fc ctc_lo dense mlp "
    "classification_head asr_head predictor".split()
)
"""First words of a task's heads, those that stand beside an encoder in people's own classes included."""

_OPTIMIZER = re.compile(r"optim(izer)?s?(_states?)?(_dict)?", re.IGNORECASE)
"""Keys of an optimizer's state."""
_PROGRESS = frozenset("epoch epochs step steps global_step iteration num_updates batch_idx_train".split())
"""Keys of a trainer's counters; some published models have them."""

_TRACES = frozenset(["training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt"])
"""What transformers' Trainer leaves beside the weights; published models have none of it."""


def judge_order(base: Checkpoint, finetuned: Checkpoint, alignment: Alignment) -> list[Finding]:
    """Return a reason to refuse if only the base looks fine-tuned: it has a task's head, or a trainer's traces.

    The head of an encoder-decoder, or of a language model, says nothing: it is of pre-training as well.
    """
    if _has_own(alignment) or finetuned.adapter is not None:  # which leaves no trace, and is never the base
        return []
    heads = (
        []
        if any(is_decoder(stack) or is_language_model(stack) for stack in base.naming.stacks)
        else _task_heads(alignment.base_names)
    )
    traces = [] if _traces(finetuned) or _PROGRESS & finetuned.others.keys() else _traces(base)
    if not heads and not traces:
        return []
    evidence = f"a task's head ({', '.join(heads)})" if heads else f"what a trainer leaves ({', '.join(traces)})"
    text = (
        f"the base {base.reference} has {evidence} and the fine-tune {finetuned.reference} has none: are they swapped?"
    )
    swapped = shlex.join(["speechft-merge", finetuned.reference, base.reference])
    return [Finding(Level.REFUSAL, text, f"in the other order: {swapped}", ALLOW_UNRELATED)]


def _has_own(alignment: Alignment) -> bool:
    """Return whether the fine-tune has a module that the base lacks, and that is none of pre-training."""
    paired = {*alignment.pairs.values(), *alignment.mismatched.values()}
    own = (name.canonical for own, name in alignment.finetuned_names.items() if own not in paired)
    return any("." in name and (name.partition(".")[0] in _TASKS or not is_head(name)) for name in own)


def _task_heads(names: Mapping[str, TensorName]) -> list[str]:
    words = (name.canonical.partition(".")[0] for name in names.values() if name.is_head)
    return list(dict.fromkeys(word for word in words if word in _TASKS))


def _traces(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.origin is not None and checkpoint.origin.lab == S3PRL_FINETUNE:
        return [S3PRL_FINETUNE]
    if checkpoint.origin is None or checkpoint.origin.lab == LIGHTNING:
        kept = [key for key in checkpoint.others if _OPTIMIZER.fullmatch(key)]
        if kept:
            return kept
    there = checkpoint.folder.names() if checkpoint.folder is not None else []
    return [name for name in there if name in _TRACES]
