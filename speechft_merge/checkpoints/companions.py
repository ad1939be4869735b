"""Reads the small files beside the weights: configuration, feature extractor, tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint

CONFIG = "config.json"
FEATURE_EXTRACTOR = "preprocessor_config.json"
COMPANIONS = (
    CONFIG,
    FEATURE_EXTRACTOR,
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
"""Every small file that belongs to a model."""

MAX_SIZE = 64 << 20
"""Most bytes of one; Whisper's tokenizer.json has 2.5 MB."""


def read_companion_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Read a JSON object from beside the weights; empty if there is no such file.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    content = read_companions(checkpoint, (name,)).get(name)
    return {} if content is None else parse_companion(content, checkpoint.reference, name)


def read_companions(checkpoint: Checkpoint, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Read those of the wanted files that lie beside the weights.

    Raises:
        CheckpointError: one is larger than `MAX_SIZE`.
    """
    if checkpoint.folder is None:
        return {}
    there = set(checkpoint.folder.names())
    found = {}
    for name in wanted:
        if name in there:
            with checkpoint.folder.open(name) as source:
                if source.size > MAX_SIZE:
                    raise CheckpointError(f"{source.name} has {source.size} bytes, at most {MAX_SIZE} are allowed")
                found[name] = source.read(0, source.size)
    return found


def parse_companion(content: bytes, reference: str, name: str) -> dict[str, Any]:
    """Parse the JSON object in a companion called `name`.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{reference}: its {name} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{reference}: its {name} holds a {type(parsed).__name__}, expected an object")
    return parsed
