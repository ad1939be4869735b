"""Recognises a language model beside a speech encoder: Qwen2-Audio's, Voxtral's, the thinker of Qwen2.5-Omni.

It is a list of blocks that is called so, or whose module embeds words and attends to no other. It is neither the only
list beside decoders, nor an encoder, a decoder or what speaks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.layouts.heads import EMBEDDINGS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

NAME = "language_model"
"""What its stack is called, whatever its module is."""

WORDS = frozenset([NAME, "text_model", "llm", "lm"])
"""Words for a module that is one."""
_OTHERS = re.compile(r".*encoders?|talker|code_predictor|vocoder|token2wav|code2wav")
"""Words for what is none, although it may be built as one: an encoder of text, a decoder of speech."""
_DECODER = re.compile(r".*decoders?")
_ATTENDS = re.compile(r"\.(encoder_attn|enc_attn|cross_attn|cross_attention|crossattention|src_attn)\.")
"""Attention to another module."""
_NORMS = frozenset(["norm", "layer_norm", "final_layernorm", "ln_f"])


def is_language_model(stack: str) -> bool:
    """Return whether a stack is a language model by its name."""
    return stack.rpartition(".")[2] == NAME


def find_language_models(names: Collection[str], owners: Mapping[str, str]) -> frozenset[str]:
    """Return which lists of blocks are those of language models.

    Args:
        names: of all tensors.
        owners: path of each list -> the module that holds it, with a dot at its end.
    """
    sounds = [path for path in owners if not _has(_DECODER, path)]
    found = [path for path in sounds if not _has(_OTHERS, path) and _is_one(path, owners[path], names)]
    return frozenset(found) if len(found) < len(sounds) else frozenset()


def _has(word: re.Pattern[str], path: str) -> bool:
    return any(map(word.fullmatch, path.split(".")))


def _is_one(path: str, owner: str, names: Collection[str]) -> bool:
    if not WORDS.isdisjoint(path.split(".")):
        return True
    embeds = any(f"{owner}{word}.weight" in names for word in EMBEDDINGS)
    return embeds and not any(name.startswith(f"{path}.") and _ATTENDS.search(name) for name in names)


def belongs_to(name: str, owner: str) -> bool:
    """Return whether a tensor outside of the blocks is a language model's: of its module, or of words or logits beside.

    Args:
        name: of the tensor.
        owner: the module that holds the blocks, with a dot at its end.
    """
    around, words = owner.split(".")[:-1], name.split(".")
    called = next((depth for depth, word in enumerate(around, 1) if word in WORDS), None)
    if called is not None and words[:called] == around[:called]:
        return True
    last = next((at for at, word in enumerate(words) if word in EMBEDDINGS or word == "lm_head"), None)
    if last is not None:
        return words[:last] == around[:last]
    return words[:-2] == around and words[-2] in _NORMS
