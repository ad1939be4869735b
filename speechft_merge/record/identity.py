"""Identifies a merge by the weights that go in, the recipe, and the files that come out."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from speechft_merge.record.manifest import FORMAT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechft_merge.recipe import Recipe
    from speechft_merge.record.manifest import InputRecord


def identify(recipe: Recipe, inputs: Sequence[InputRecord], files: str, companions: Mapping[str, bytes]) -> str:
    """Return a digest that two merges share if, and only if, they are the same.

    Args:
        recipe: what is mixed.
        inputs: base and fine-tunes, by their fingerprints.
        files: digest of the weight files to the byte, their content aside.
        companions: name -> content of the files beside the weights.
    """
    content = {
        "format": FORMAT,
        "recipe": recipe.to_json(),
        "inputs": [entry.fingerprint for entry in inputs],
        "files": files,
        "companions": {name: hashlib.sha256(text).hexdigest() for name, text in sorted(companions.items())},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
