"""Finds the prefix of an encoder's names: task classes, wrappers and trainers add one."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from speechft_merge.layouts.structure import STACKS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MODEL_PREFIXES = frozenset(
    "hubert wav2vec2 wavlm wav2vec2_bert wav2vec2_conformer data2vec_audio unispeech unispeech_sat sew sew_d whisper "
    "model module base_model backbone upstream speech_encoder _orig_mod".split()
)
"""Words before an encoder's names; needed only where both sides have the same one, and a comparison shows nothing."""

LEAST_SHARE = 0.1
"""Share of all parameters, or of all tensors, that must be under a prefix for it to be tried. Whisper tiny's encoder
has 22 % of the parameters; a small encoder under a large head may have few, but it has most tensors."""


def encoder_prefix(names: Collection[str], prefix: str = "") -> str:
    """Return `prefix`, lengthened by model prefixes before more than half of the names, and by words before all."""
    while True:
        words = Counter(name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix))
        most, count = words.most_common(1)[0] if words else ("", 0)
        wraps = count == words.total() and most not in (*STACKS, "") and not _is_list(names, f"{prefix}{most}.")
        if not wraps and (most not in MODEL_PREFIXES or 2 * count <= words.total()):
            return prefix
        prefix += most + "."


def _is_list(names: Collection[str], prefix: str) -> bool:
    """Return whether numbers follow, or names end: then the prefix is a list of blocks or a module, not a wrapper."""
    return any(name[len(prefix) :].partition(".")[0].isdigit() or "." not in name[len(prefix) :] for name in names)


def candidate_prefixes(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return every prefix that covers enough of a model to be the encoder's."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        words = name.split(".")[:-1]
        for depth in range(len(words) + 1):
            if depth and words[depth - 1].isdigit():
                break
            prefix = "".join(word + "." for word in words[:depth])
            sizes[prefix] += math.prod(shape)
            counts[prefix] += 1
    return [
        prefix
        for prefix in counts
        if sizes[prefix] >= LEAST_SHARE * sizes[""] or counts[prefix] >= LEAST_SHARE * counts[""]
    ]
