"""Strips the words that wrappers put into names: of compilation, data parallelism, activation checkpoints, averages.

Wrappers stand before a whole model, before some of its modules, and in one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

WRAPPERS = (
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",  # FSDP of torch, fairscale and torch_xla
    "_fpw_module",  # the flattened parameters of the latter two
    "_checkpoint_wrapped_module",  # activation checkpoints and offloading of torch
    "_forward_module",  # Lightning, also in what it converts from DeepSpeed
    "_original_module",  # Lightning Fabric
    "_orig_module",  # torch_xla's FSDP by sharding
    "_module",  # Opacus
    "module",  # DataParallel of torch and fairscale, AveragedModel, DeepSpeed, QuantWrapper
)
"""Names that these give to the module inside; the last is also what anybody may call one of his own."""


def wrappers_of(names: Collection[str]) -> frozenset[str]:
    """Return the wrapper words that can be stripped from these names without making two of them equal."""
    text = "".join(f".{name}\n" for name in names)
    words: frozenset[str] = frozenset()
    for word in WRAPPERS:
        if f".{word}." in text:
            more = words | {word}
            if len({unwrap(name, more) for name in names}) == len(names):
                words = more
    return words


def unwrap(name: str, words: frozenset[str]) -> str:
    """Return a name without these words; its last word is a tensor's and stays."""
    if not words:
        return name
    *modules, last = name.split(".")
    return ".".join([*(word for word in modules if word not in words), last])
