"""Makes the small files beside the output's weights: configuration, feature extractor, tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.companions import CONFIG, FEATURE_EXTRACTOR, parse_companion, read_companions
from speechft_merge.checkpoints.dtypes import DType

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.plan.plan import Plan

OTHERS = (
    "processor_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "normalizer.json",
    "alphabet.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm_char.model",
)


def companions_of(
    plan: Plan, base: Checkpoint, finetuned: list[Checkpoint], derived: dict[str, bytes] | None = None
) -> dict[str, bytes]:
    """Return name -> content of the files that belong to the output's class.

    Unless derived already, they come from the base, or with its head from the first fine-tune. The feature
    extractor's settings do not depend on the head, so where that side lacks them they come from the other.

    Raises:
        CheckpointError: the config is not JSON, or a file is far too large.
    """
    owner, other = (finetuned[0], base) if plan.recipe.keep_head else (base, finetuned[0])
    found = read_companions(owner, (CONFIG, FEATURE_EXTRACTOR, *OTHERS)) if derived is None else dict(derived)
    if derived is None and FEATURE_EXTRACTOR not in found:
        found |= read_companions(other, (FEATURE_EXTRACTOR,))
    if CONFIG in found:
        found[CONFIG] = _with_dtype(found[CONFIG], plan, owner.reference)
    return found


def parse_config(companions: dict[str, bytes]) -> dict[str, Any]:
    """Return the output's config as an object; empty if it has none."""
    return parse_companion(companions[CONFIG], "the output", CONFIG) if CONFIG in companions else {}


def _with_dtype(content: bytes, plan: Plan, reference: str) -> bytes:
    """Return the config with the output's element type, under the key that it uses (`dtype` from transformers 5 on)."""
    config = parse_companion(content, reference, CONFIG)
    key = "dtype" if "dtype" in config else "torch_dtype"
    actual = main_dtype(plan)
    if config.get(key, "float32" if actual is DType.F32 else None) == actual.torch_name:
        return content
    config[key] = actual.torch_name
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def main_dtype(plan: Plan) -> DType:
    """Return the float type that most bytes of the output have."""
    sizes: dict[DType, int] = {}
    for tensor in plan.tensors:
        if tensor.dtype.interpolated:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])
