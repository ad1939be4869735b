"""Finds the prefix of an encoder's names: task classes, wrappers and trainers add one."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from speechft_merge.layouts.structure import BLOCK_LISTS, PLURALS, STACKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

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


def encoder_prefix(names: Collection[str]) -> str:
    """Return the longest of `encoder_prefixes`, or nothing."""
    return next(iter([*encoder_prefixes(names)][-1:]), "")


def encoder_prefixes(names: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield `prefix` lengthened step by step by what stands before more than half of the names and holds a model.

    That is a model prefix, or a number with a list of blocks under it; before all of the names it is any word.
    """
    inner = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    while step := _member(inner) or _word(inner):
        prefix += step
        yield prefix
        inner = [name[len(step) :] for name in inner if name.startswith(step)]


def _member(names: list[str]) -> str:
    """Return the member of a list that holds most of a model, such as the first of an nn.Sequential; or nothing."""
    most, count = _most_common(filter(None, map(_first_member, names)))
    holds = any(name.startswith(most) and _blocks_at(name[len(most) :].split(".")) is not None for name in names)
    return most if 2 * count > len(names) and holds else ""


def _first_member(name: str) -> str:
    """Return the path of the outermost number in a name, unless it is that of a block."""
    words = name.split(".", MAX_DEPTH)[:-1]
    at = next((at for at, word in enumerate(words) if word.isdigit()), None)
    blocks = at is None or (at > 0 and words[at - 1] in BLOCK_LISTS)
    return "" if blocks else "".join(f"{word}." for word in words[: (at or 0) + 1])


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
    """Return how many words of a name stand before the number of a block, the innermost; None if there is none."""
    numbers = (at for at in range(min(len(words), MAX_DEPTH) - 1, 0, -1) if words[at].isdigit())
    return next((at for at in numbers if words[at - 1] in BLOCK_LISTS or words[at - 1] in PLURALS), None)


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
