"""Decides which small files an output gets, and from which model: what its class, its processor and its code need."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints.companions import (
    CONFIG,
    FEATURE_EXTRACTOR,
    PROCESSOR,
    TOKENIZER,
    Companions,
    encode_companion,
    is_tokenizer,
    read_all_companions,
)
from speechft_merge.errors import MismatchError
from speechft_merge.layouts.heads import class_like
from speechft_merge.plan.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Collection

    from speechft_merge.checkpoints import Checkpoint

_EMBEDDINGS = re.compile(r"(.*\.)?(lm_head|proj_out|embed_tokens)\.weight")
"""Tensors that have a row for each word of the vocabulary."""
_ADAPTERS = re.compile(r"adapter\.[\w-]+\.(safetensors|bin)")
"""MMS's adapters of other languages, which its class loads in place of its own."""
_PLAIN = re.compile(r"(\w[\w.-]*/)?\w[\w.+-]*", re.ASCII)
"""Names that an output may have: none leads out of its folder."""


class Chosen(NamedTuple):
    """The small files of an output."""

    files: dict[str, bytes]
    findings: tuple[Finding, ...]


def choose_companions(owner: Checkpoint, other: Checkpoint, names: set[str], keep_head: bool) -> Chosen:
    """Choose the small files beside an output's weights.

    Args:
        owner: the model whose class is written.
        other: the first of the others; what does not depend on the class comes from it where the owner lacks it.
        names: of the output's tensors.
        keep_head: whether the owner is a fine-tune, and so may be a checkpoint of its training.

    Raises:
        CheckpointError: a file is no JSON, a pointer of Git LFS, or a link that leads out of the folder.
        MismatchError: the fine-tune has no config.json, and the base's does not fit it.
    """
    own, others = read_all_companions(owner), read_all_companions(other)
    files = {name: content for name, content in own.files.items() if _PLAIN.fullmatch(name)}
    findings = [_left(owner, name) for name in (*own.large, *(own.files.keys() - files.keys()))]
    findings += _adapters(owner)
    if keep_head and CONFIG not in files and CONFIG in others.files:
        config = config_like(others.settings(CONFIG, other.reference), owner, other, names)
        if config is None:
            raise MismatchError(
                f"{owner.reference} has no config.json, and what its class is cannot be told from its tensors",
                hint="put the config.json of its class beside its weights",
            )
        files[CONFIG] = encode_companion(config)
        findings.append(Finding(Level.NOTE, f"{owner.reference} has no config.json: it is made from the base's"))
    files |= _extractor(own, others, owner, other)
    if keep_head:
        tokenizer, found = _tokenizer(own, others, owner, other)
        files, findings = files | tokenizer, [*findings, *found]
    if owner.hub is not None:
        files = {name: _on_hub(content, name, owner) for name, content in files.items()}
    return Chosen(files, tuple(findings))


def _left(owner: Checkpoint, name: str) -> Finding:
    return Finding(Level.WARNING, f"{name} of {owner.reference} is not copied: put it beside the merge if you need it")


def _adapters(owner: Checkpoint) -> list[Finding]:
    there = [name for name in (owner.folder.names() if owner.folder else []) if _ADAPTERS.fullmatch(name)]
    if not there:
        return []
    text = f"the adapters of {owner.reference} ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}) belong to "
    return [Finding(Level.WARNING, f"{text}its unmerged weights and are not copied")]


def _extractor(own: Companions, others: Companions, owner: Checkpoint, other: Checkpoint) -> dict[str, bytes]:
    """Return the settings of the other model's feature extractor where the owner has none: no head changes them."""
    if FEATURE_EXTRACTOR in own.files or "feature_extractor" in own.settings(PROCESSOR, owner.reference):
        return {}
    inner = others.settings(PROCESSOR, other.reference).get("feature_extractor")
    if isinstance(inner, dict) and inner:
        return {FEATURE_EXTRACTOR: encode_companion(inner)}
    return {name: content for name, content in others.files.items() if name == FEATURE_EXTRACTOR}


def _tokenizer(
    own: Companions, others: Companions, owner: Checkpoint, other: Checkpoint
) -> tuple[dict[str, bytes], list[Finding]]:
    """Return the base's tokenizer where the fine-tune lacks one; training code often saves none."""
    theirs = {name: content for name, content in others.files.items() if is_tokenizer(name)}
    rows = _vocabulary(owner)
    if not theirs or rows is None or any(map(is_tokenizer, own.files)):
        return {}, []
    if rows == _vocabulary(other):
        text = f"{owner.reference} has no tokenizer: the base's is taken, as both have {rows} words"
        return theirs, [Finding(Level.NOTE, text)]
    text = f"{owner.reference} has no tokenizer, and the base's is of another vocabulary: add {TOKENIZER} and its files"
    return {}, [Finding(Level.WARNING, text)]


def _vocabulary(model: Checkpoint) -> int | None:
    return next((shape[0] for name, shape in model.shapes.items() if shape and _EMBEDDINGS.fullmatch(name)), None)


def config_like(
    config: dict[str, Any], owner: Checkpoint, other: Checkpoint, names: Collection[str]
) -> dict[str, Any] | None:
    """Return a config for the class of a fine-tune that has none; None if it cannot be told what its class is.

    Args:
        config: of the other model.
        owner: the fine-tune.
        other: the base.
        names: of the output's tensors.
    """
    if all(_EMBEDDINGS.fullmatch(name) for name in {*names} ^ {*other.tensors}):  # one may store what the other ties
        return config
    family = f"{str(config.get('model_type')).replace('-', '_')}."
    shapes = {name: shape for name, shape in owner.shapes.items() if name in names}
    settings = class_like(config.get("architectures"), shapes) if owner.naming.prefix in ("", family) else None
    return None if settings is None else config | settings


def _on_hub(content: bytes, name: str, owner: Checkpoint) -> bytes:
    """Return a configuration with `repo--module.Class` for code that lies on the Hub, as transformers writes it."""
    if not name.endswith(".json") or b'"auto_map"' not in content or owner.hub is None:
        return content
    settings = json.loads(content)
    classes = settings.get("auto_map") if isinstance(settings, dict) else None
    if not isinstance(classes, dict):
        return content
    repo = owner.hub.repo

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(item) for item in value]
        return f"{repo}--{value}" if isinstance(value, str) and "--" not in value else value

    return encode_companion(settings | {"auto_map": {key: placed(value) for key, value in classes.items()}})
