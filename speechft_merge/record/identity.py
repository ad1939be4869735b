"""Identifies a merge: by the weights that go in, the recipe, and the files that come out."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.recipe import Recipe

FORMAT = 3
"""Version of manifest and arithmetic: raised when the same recipe would give other bytes, or when a manifest can no
longer be read as before. In 1, that of version 0.1, a layer's block and part were one string, and alphas were
strings; in 2, checksums were of a kind of their own. Outputs of an earlier version are not recognised as finished, but
can be replaced, and its recipes can be given again."""


_LATER = (("method", "mean"), ("strip", False), ("lora_alpha", None))
"""Keys that recipes got later, and what was so before: where they say that, a merge is the one that it was."""


def identify(recipe: Recipe, fingerprints: Sequence[str], files: str, companions: Mapping[str, bytes]) -> str:
    """Return a digest that two merges share if, and only if, they are the same.

    Args:
        recipe: what was asked.
        fingerprints: of base and fine-tunes.
        files: digest of the weight files to the byte, their content aside.
        companions: name -> content of the files beside the weights.
    """
    asked = {key: value for key, value in recipe.to_json().items() if (key, value) not in _LATER}
    content = {
        "format": FORMAT,
        "recipe": asked,
        "inputs": list(fingerprints),
        "files": files,
        "companions": {name: hashlib.sha256(text).hexdigest() for name, text in sorted(companions.items())},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _changes(checkpoint: Checkpoint) -> str:
    """Return what of an adapter is in no tensor, as text; empty for a whole model."""
    return json.dumps(dict(checkpoint.adapter.changes), sort_keys=True) if checkpoint.adapter is not None else ""


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a sha256 over every tensor's name, type and shape and over a little of its data.

    It differs between checkpoints that any training separates, at the cost of small reads; a checksum of the whole
    file would cost more than the merge. For files on the Hub, the Hub's own checksums are taken.
    """
    known = [source.identity for source in checkpoint.sources]
    if all(known):
        known += [checkpoint.picked] if checkpoint.picked else []
        known += [changes] if (changes := _changes(checkpoint)) else []
        return hashlib.sha256("\n".join(map(str, known)).encode()).hexdigest()
    digest = hashlib.sha256(_changes(checkpoint).encode())
    for name, span in sorted(checkpoint.held.items()):
        digest.update(f"{name}\0{span.dtype.name}\0{list(span.shape)}\0".encode())
        count = min(256, span.nbytes)
        for offset in (0, (span.nbytes - count) // 2, span.nbytes - count):
            digest.update(span.source.read(span.offset + offset, count))
    return digest.hexdigest()
