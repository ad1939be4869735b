"""Decides what becomes of the files that a repository holds: what a loader would take for the merge goes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.checkpoints.companions import is_companion
from speechft_merge.checkpoints.strangers import NOT_WEIGHTS
from speechft_merge.record.manifest import FIGURE, SIMILARITY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_SHARD = r"-\d+-of-\d+"
_LOADED = re.compile(
    # what from_pretrained loads by default, by `variant`, `from_tf` or `from_flax`, with the indexes of shards
    rf"(model|pytorch_model|tf_model|flax_model)(\.[\w.-]+?)?({_SHARD})?(\.[\w.-]+?)?\.(safetensors|bin|h5|msgpack)"
    r"(\.index(\.[\w.-]+)?\.json)?"
    r"|model\.ckpt(\..+)?"
    # what it loads before (with peft installed) or on top of the weights: LoRA, and adapters of a language (MMS)
    r"|adapter_(config\.json|model(\..+)?)|adapter\.[\w.-]+\.(safetensors|bin)"
    # what vLLM prefers
    r"|consolidated(\..+)?\.(safetensors|pth)(\.index\.json)?"
    # a lab's file of an earlier merge
    r"|merged_model\.(pt|pth|ckpt|bin|pth\.tar|th|nemo|model)"
)
"""Names at the top of a repository under which loaders find weights."""

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|pth\.tar|th|ckpt|h5|msgpack|onnx|onnx_data|gguf|nemo|tflite|mlmodel|ort)|(.*/)?adapter_config\.json"
)
_BOOKKEEPING = (".gitattributes",)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a push does to the files that are in the repository already."""

    replaced: tuple[str, ...]
    deleted: tuple[str, ...]
    """Weights and adapters that would be loaded instead of the merge or over it, and companions of another model."""
    kept: tuple[str, ...]

    @property
    def other_weights(self) -> list[str]:
        """Those that stay and are weights: in subfolders, or for other loaders."""
        return [name for name in self.kept if _is_weights(name)]


def decide_changes(there: Iterable[str], outgoing: Collection[str]) -> Changes:
    """Decide what becomes of each file in a repository.

    An output is a whole model. Whatever transformers would load from the top of the repository is therefore of this
    merge or goes, also a tokenizer that this merge does not have; a model in a subfolder, weights for other toolkits
    and everything else stay.

    Args:
        there: names of the files in the repository.
        outgoing: names of the files that are pushed.
    """
    found = sorted(set(there).difference(_BOOKKEEPING))
    rest = [name for name in found if name not in outgoing]
    return Changes(
        replaced=tuple(name for name in found if name in outgoing),
        deleted=tuple(name for name in rest if _would_be_loaded(name)),
        kept=tuple(name for name in rest if not _would_be_loaded(name)),
    )


def _would_be_loaded(name: str) -> bool:
    return bool(_LOADED.fullmatch(name)) or is_companion(name) or name in (SIMILARITY, FIGURE)


def _is_weights(name: str) -> bool:
    return bool(_WEIGHTS.fullmatch(name)) and not NOT_WEIGHTS.match(name.rpartition("/")[2])
