"""Recognises, by names and shapes, weights that are expressed elsewhere: adapters, quantisers, trainers' shards.

Their plain weights, where there are any, are not what the model computes with, so they cannot be mixed as they are.
Sources: peft's tuners/*, loralib's layers.py, SpeechBrain's nnet/adapters.py, bitsandbytes' nn/modules.py and
functional.py, AutoGPTQ, HQQ and compressed-tensors, torch's ao/nn/quantized, DeepSpeed's zero_to_fp32.py, FSDP's and
fairscale's flat parameters.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


class Elsewhere(NamedTuple):
    """What of a checkpoint is expressed elsewhere."""

    kind: str
    """What it is: LoRA or another adapter, quantised weights, placeholders."""
    names: tuple[str, ...]
    """The tensors that say so."""
    words: tuple[str, ...]
    """The telling words, the most frequent first: `lora_A`, `lora_B`; empty where types or shapes tell."""
    modules: tuple[str, ...]
    """Last words of the modules that they belong to, likewise: `q_proj`, `v_proj`."""
    hint: str
    """What to do."""


LEAST_EMPTY = 0.2
"""Share of the tensors that are placeholders if ZeRO-3 left them: it partitions large ones only."""

_FOLD = (
    "fold the adapters into the weights where the model was made (peft: merge_and_unload()) and save the whole model; "
    "or, if it is LoRA, pass its alpha, which is not in the file, as --lora-alpha"
)
_DEQUANTISE = "load the model in full precision (or dequantize() it) and save it again"

_KINDS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        "a LoRA or another adapter around its weights",
        re.compile(
            r"(lora|ia3|vera|hada|lokr|oft|boft|hra|fourierft|vblora|randlora|road|c3a|shira|bone|miss|delora)_"
            r"(?!(model|net|network|encoder|backbone|wrapper|module)$).+"
            r"|base_layer|modules_to_save|original_module|pretrained_(module|linear)|adapter_(down|up)(_proj)?"
            r"|loras|prefix_tunings|trainable_tokens_.+"
        ),
        _FOLD,
    ),
    (
        "quantised weights",
        re.compile(
            r"SCB|CB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map|quant_state|bitsandbytes__.+"
            r"|qweight|qzeros|g_idx|_?packed_params|weight_packed|W_q|zero_point"
        ),
        _DEQUANTISE,
    ),
    (
        "flat parameters of FSDP, whose shapes only the training program knows",
        re.compile(r"_?flat_param(_\d+|eters?)?"),
        "save a full state dict (FULL_STATE_DICT; fairseq: consolidate_fsdp_shards.py)",
    ),
    (
        "weights that are computed from others (pruning, spectral norm, a parametrization)",
        re.compile(r"weight_(orig|mask)|parametrizations"),
        "make them plain (torch.nn.utils.prune.remove, remove_parametrizations) and save the model again",
    ),
)
"""What it is, a word of a name that says so, and what to do."""

_ANY = re.compile(rf"(?m)(?:^|\.)(?:{'|'.join(pattern.pattern for _, pattern, _ in _KINDS)})(?:\.|$)")

_PLACEHOLDERS = (
    "placeholders of DeepSpeed ZeRO-3, whose weights are spread over the shards of its training",
    "run zero_to_fp32.py, which lies beside the shards, and give what it writes",
)


def find_elsewhere(
    names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], coded: Collection[str]
) -> Elsewhere | None:
    """Return what of a checkpoint is expressed elsewhere; None if nothing is.

    Args:
        names: own name -> name without the words of wrappers.
        shapes: by own names.
        coded: own names of weights in whole numbers or in 8 bits.
    """
    names = _without_common_words(names)
    telling = _ANY.search("\n".join(names.values())) is not None  # a quick look: few models have any
    for kind, pattern, hint in _KINDS if telling else ():
        found = {own: place for own, name in names.items() if (place := _place(name, pattern)) is not None}
        if found:
            words, modules = ([place[i] for place in found.values()] for i in (1, 0))
            return Elsewhere(kind, tuple(found), _frequent(words), _frequent(modules), hint)
    if coded:
        modules = [names[own].rpartition(".")[0].rpartition(".")[2] for own in coded]
        return Elsewhere("quantised weights", tuple(coded), (), _frequent(modules), _DEQUANTISE)
    empty = tuple(name for name, shape in shapes.items() if shape == (0,))
    if empty and len(empty) >= LEAST_EMPTY * len(shapes):
        return Elsewhere(_PLACEHOLDERS[0], empty, (), (), _PLACEHOLDERS[1])
    return None


def other_adapters(names: Iterable[str]) -> list[str]:
    """Return the names that tell of an adapter, among those that LoRA does not account for."""
    _, pattern, _ = _KINDS[0]
    return [name for name in names if _place(name, pattern) is not None]


def _without_common_words(names: Mapping[str, str]) -> Mapping[str, str]:
    """Return names without the words that all of them begin with: those of modules around the whole model."""
    first, last = (pick(names.values(), default="").split(".") for pick in (min, max))
    common = 0
    while common < min(len(first), len(last)) - 1 and first[common] == last[common]:
        common += 1
    length = sum(len(word) + 1 for word in first[:common])
    return {own: name[length:] for own, name in names.items()} if common else names


def _place(name: str, pattern: re.Pattern[str]) -> tuple[str, str] | None:
    """Return a name's first telling word, after the word before it; None without such a word."""
    words = name.split(".")
    first = next((i for i, word in enumerate(words) if pattern.fullmatch(word)), None)
    return None if first is None else (words[first - 1] if first else "", words[first])


def _frequent(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word, _ in Counter(filter(None, words)).most_common())
