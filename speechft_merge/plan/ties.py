"""Finds the tensors that are one: in one storage, or input and output embeddings that are equal or said to be tied."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.companions import CONFIG, read_companion_json
from speechft_merge.layouts.heads import EMBEDDINGS
from speechft_merge.plan.evidence import SAMPLED_ELEMENTS, is_equal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.layouts.naming import TensorName

_OUTPUTS = ("lm_head", "proj_out", "output_projection", "embed_out", "output_layer", "text_decoder_postnet")


def find_ties(owner: Checkpoint, names: Mapping[str, TensorName]) -> dict[str, str]:
    """Return output embedding -> the input embedding that it is one with, by content or by config.json.

    Writers differ in whether they store both, and transformers 5 ties them no more where both are stored and differ
    (transformers issues 30202 and 43159). Those in one storage are not listed; `TensorSpan.storage_key` tells them.

    Args:
        owner: the model whose class is written.
        names: what each of its tensors is.
    """
    embeddings = [own for own in owner.tensors if _is(own, EMBEDDINGS) and names[own].location.block is None]
    outputs = [own for own in owner.tensors if _is(own, _OUTPUTS) and names[own].location.block is None]
    pairs = [(output, embedding) for output in outputs for embedding in embeddings]
    alike = [
        (one, other)
        for one, other in (*pairs, *combinations(embeddings, 2))
        if owner.tensors[one].shape == owner.tensors[other].shape
        and owner.tensors[one].dtype is owner.tensors[other].dtype
        and len(owner.tensors[one].shape) == 2
    ]
    said = bool(alike) and read_companion_json(owner, CONFIG).get("tie_word_embeddings") is True
    ties: dict[str, str] = {}
    for one, other in alike:
        a, b = owner.tensors[one], owner.tensors[other]
        if (said and one in outputs) or (a.elements >= SAMPLED_ELEMENTS and is_equal(a, b)):
            ties.setdefault(one, ties.get(other, other))
    return ties


def _is(name: str, words: tuple[str, ...]) -> bool:
    """Return whether a name is that of the weight of one of these modules."""
    *modules, last = name.split(".")
    return last == "weight" and any(module in words for module in modules[-2:])
