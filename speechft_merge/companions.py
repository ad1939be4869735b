"""The small files beside the weights: configuration, feature extractor, tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.plan import Plan

CONFIG = "config.json"
FEATURE_EXTRACTOR = "preprocessor_config.json"
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
MAX_SIZE = 64 << 20
"""Bytes of such a file; Whisper's tokenizer.json has 2.5 MB."""


def companions_of(
    plan: Plan, base: Checkpoint, finetuned: list[Checkpoint], derived: dict[str, bytes] | None = None
) -> dict[str, bytes]:
    """Name -> content of the files that belong to the output's class.

    Where they are not derived already, they come from the base, or with its head from the first fine-tune. The feature
    extractor's settings are the model's own whatever its head, so where that side lacks them they come from the other.

    Raises:
        CheckpointError: the config is not JSON, or a file is far too large.
    """
    owner, other = (finetuned[0], base) if plan.recipe.keep_head else (base, finetuned[0])
    found = _read(owner, (CONFIG, FEATURE_EXTRACTOR, *OTHERS)) if derived is None else dict(derived)
    if derived is None and FEATURE_EXTRACTOR not in found:
        found |= _read(other, (FEATURE_EXTRACTOR,))
    if CONFIG in found:
        found[CONFIG] = _with_dtype(found[CONFIG], plan, owner.reference)
    return found


def read_companion_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """A JSON object from beside the weights; empty if there is no such file.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    content = _read(checkpoint, (name,)).get(name)
    return {} if content is None else _parse(content, checkpoint.reference, name)


def parse_config(companions: dict[str, bytes]) -> dict[str, Any]:
    """The output's config as an object; empty if it has none."""
    return _parse(companions[CONFIG], "the output", CONFIG) if CONFIG in companions else {}


def _read(checkpoint: Checkpoint, wanted: tuple[str, ...]) -> dict[str, bytes]:
    if checkpoint.folder is None:
        return {}
    there = set(checkpoint.folder.names())
    found = {}
    for name in wanted:
        if name in there:
            source = checkpoint.folder.open(name)
            if source.size > MAX_SIZE:
                raise CheckpointError(f"{source.name} has {source.size} bytes; such a file has at most {MAX_SIZE}")
            found[name] = source.read(0, source.size)
            source.close()
    return found


def _with_dtype(content: bytes, plan: Plan, reference: str) -> bytes:
    """The config with the output's element type under the key that it uses (`dtype` from transformers 5 on)."""
    config = _parse(content, reference, CONFIG)
    key = "dtype" if "dtype" in config else "torch_dtype"
    actual = main_dtype(plan)
    if config.get(key, "float32" if actual is DType.F32 else None) == actual.torch_name:
        return content
    config[key] = actual.torch_name
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _parse(content: bytes, reference: str, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{reference}: its {name} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{reference}: its {name} holds a {type(parsed).__name__}, expected an object")
    return parsed


def main_dtype(plan: Plan) -> DType:
    """The float type that most bytes of the output have."""
    sizes: dict[DType, int] = {}
    for tensor in plan.tensors:
        if tensor.dtype.interpolated:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])
