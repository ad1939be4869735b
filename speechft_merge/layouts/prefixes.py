"""Finds the prefix of an encoder's names: task classes, wrappers and trainers add one."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from speechft_merge.layouts.structure import BLOCK_LISTS, PLURALS, STACKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

MODEL_PREFIXES = frozenset(
    "hubert wav2vec2 wavlm wav2vec2_bert wav2vec2_conformer data2vec_audio unispeech unispeech_sat sew sew_d whisper "
    "audio_spectrogram_transformer model base_model backbone upstream speech_encoder".split()
)
"""Words before an encoder's names; needed only where both sides have the same one, and a comparison shows nothing."""

LEAST_SHARE = 0.1
"""Share of all parameters, or of all tensors, that must be under a prefix for it to be tried. Whisper tiny's encoder
has 22 % of the parameters; a small encoder under a large head may have few, but it has most tensors."""

MAX_DEPTH = 16
"""Most words of a prefix that is tried."""

_MEMBER = re.compile(r"(?:([^.]*[^.0-9][^.]*)\.)?[0-9]{1,9}\.")
"""A member of a list of modules: its word, if it has one, and its number."""


def encoder_prefix(names: Collection[str], prefix: str = "") -> str:
    """Return `prefix`, lengthened by what stands before more than half of the names and is known to hold a model.

    That is a model prefix, or a number with a list of blocks under it; before all of the names it is any word.
    """
    inner = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    while step := _member(inner) or _word(inner):
        prefix += step
        inner = [name[len(step) :] for name in inner if name.startswith(step)]
    return prefix


def _member(names: list[str]) -> str:
    """Return the member of a list that holds most of a model, such as the first of an nn.Sequential; or nothing."""
    found = (match for match in map(_MEMBER.match, names) if match and match[1] not in BLOCK_LISTS)
    most, count = _most_common(match[0] for match in found)
    holds = any(name.startswith(most) and _blocks_at(name[len(most) :].split(".")) is not None for name in names)
    return most if 2 * count > len(names) and holds else ""


def _word(names: list[str]) -> str:
    most, count = _most_common(name[: name.find(".") + 1] for name in names)
    wraps = count == len(names) and most not in ("", *(f"{stack}." for stack in STACKS)) and not _is_list(names, most)
    return most if wraps or (most[:-1] in MODEL_PREFIXES and 2 * count > len(names)) else ""


def _most_common(words: Iterable[str]) -> tuple[str, int]:
    return next(iter(Counter(words).most_common(1)), ("", 0))


def _is_list(names: list[str], word: str) -> bool:
    """Return whether numbers follow, or names end: then the word is that of a list or a module, not of a wrapper."""
    return any(name[len(word) :].partition(".")[0].isdigit() or "." not in name[len(word) :] for name in names)


def _blocks_at(words: list[str]) -> int | None:
    """Return where the innermost list of blocks is in the words of a name, by its own word; None if there is none."""
    lists = (at for at in range(min(len(words), MAX_DEPTH) - 1, 0, -1) if words[at].isdigit())
    return next((at - 1 for at in lists if words[at - 1] in (*BLOCK_LISTS, *PLURALS)), None)


def candidate_prefixes(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return every prefix that covers enough of a model to be the encoder's; under a number, only if it has blocks."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    numbered: set[str] = set()
    holding: set[str] = set()
    for name, shape in shapes.items():
        words, size, prefix, number = name.split(".")[:-1], math.prod(shape), "", False
        blocks = _blocks_at(words) or 0
        for depth, word in enumerate(["", *words[:MAX_DEPTH]]):
            if word.isdigit():
                if depth > 1 and words[depth - 2] in BLOCK_LISTS:
                    break
                number = True
            prefix += f"{word}." if depth else ""
            sizes[prefix] += size
            counts[prefix] += 1
            if number:
                (holding if depth <= blocks else numbered).add(prefix)
    return [
        prefix
        for prefix in counts
        if (sizes[prefix] >= LEAST_SHARE * sizes[""] or counts[prefix] >= LEAST_SHARE * counts[""])
        and (prefix in holding or prefix not in numbered)
    ]
