"""Decides which small files an output gets, and from which model: what its class, its processor and its code need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints.companions import (
    CONFIG,
    FEATURE_EXTRACTOR,
    GENERATION,
    PROCESSOR,
    TOKENIZER,
    Companions,
    encode_companion,
    is_chat_template,
    is_tokenizer,
    modules_of,
    read_companion_json,
    read_companions,
)
from speechft_merge.errors import MismatchError
from speechft_merge.layouts.family import OWN_PREFIX
from speechft_merge.layouts.heads import class_like
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.record import card, manifest

if TYPE_CHECKING:
    from collections.abc import Collection

    from speechft_merge.checkpoints import Checkpoint

_EMBEDDINGS = re.compile(r"(.*\.)?(lm_head|proj_out|embed_tokens)\.weight")
"""Tensors that have a row for each word of the vocabulary."""
_ADAPTERS = re.compile(r"adapter\.[\w-]+\.(safetensors|bin)")
"""MMS's adapters of other languages, which its class loads in place of its own."""
_OURS = (manifest.NAME, manifest.SIMILARITY, manifest.FIGURE, card.NAME)
"""Files that an output has of its own."""


class Chosen(NamedTuple):
    """The small files of an output."""

    files: dict[str, bytes]
    findings: tuple[Finding, ...]


def choose_companions(owner: Checkpoint, other: Checkpoint, names: set[str], keep_head: bool) -> Chosen:
    """Choose the small files beside an output's weights.

    Code of a model on the Hub is copied like any other, not named where it lies: it stays that of the commit that was
    merged, and is found without a network, and where the model lies in a folder of its repository.

    Args:
        owner: the model whose class is written.
        other: the first of the others; what does not depend on the class comes from it where the owner lacks it.
        names: of the output's tensors.
        keep_head: whether the owner is a fine-tune, and so may be a checkpoint of its training.

    Raises:
        CheckpointError: a file is no JSON, a pointer of Git LFS, or a link that leads out of the folder.
        MismatchError: the owner has no config.json, and none can be made for it.
    """
    own = read_companions(owner)
    files = {name: content for name, content in own.files.items() if manifest.is_plain(name) and name not in _OURS}
    kept_out = own.files.keys() - files.keys() - {*_OURS}
    findings = [_left(owner, name) for name in (*own.large, *sorted(kept_out))] + _adapters(owner)
    for more, found in (
        _config(own, owner, other, names, keep_head),
        _extractor(own, owner, other),
        _tokenizer(own, owner, other) if keep_head else ({}, []),
    ):
        files, findings = more | files, findings + found
    return Chosen(files, tuple(findings))


def _left(owner: Checkpoint, name: str) -> Finding:
    return Finding(Level.WARNING, f"{name} of {owner.reference} is not copied: put it beside the merge if you need it")


def _adapters(owner: Checkpoint) -> list[Finding]:
    there = [name for name in (owner.folder.names() if owner.folder else []) if _ADAPTERS.fullmatch(name)]
    if not there:
        return []
    text = f"the adapters of {owner.reference} ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''}) belong to "
    return [Finding(Level.WARNING, f"{text}its unmerged weights and are not copied")]


_More = tuple[dict[str, bytes], list[Finding]]
"""Files of the other model, and what is said of them."""


def _config(own: Companions, owner: Checkpoint, other: Checkpoint, names: set[str], keep_head: bool) -> _More:
    """Return a config.json for an owner that has none, made from the other model's where its class can be told."""
    if CONFIG in own.files:
        return {}, []
    theirs = read_companions(other, CONFIG.__eq__)
    settings = theirs.settings(CONFIG, other.reference)
    config = config_like(settings, owner, other, names) if settings else None
    if config is not None:
        text = f"{owner.reference} has no config.json: it is made from that of {other.reference}"
        return theirs.files | {CONFIG: encode_companion(config)}, [Finding(Level.NOTE, text)]
    if keep_head and settings:
        raise _no_config(owner, "")
    if settings and not owner.is_named_file:
        raise _no_config(owner, f"; if transformers is not to load them, name the file ({owner.file})")
    text = f"{owner.reference} has no config.json, so the merge has none: transformers cannot load it without one"
    return {}, [Finding(Level.WARNING, text)]


def _no_config(owner: Checkpoint, otherwise: str) -> MismatchError:
    return MismatchError(
        f"{owner.reference} has no config.json, and what its class is cannot be told from its tensors",
        hint=f"put the config.json of its class beside its weights{otherwise}",
    )


def _extractor(own: Companions, owner: Checkpoint, other: Checkpoint) -> _More:
    """Return the settings of the other model's feature extractor where the owner has none: no head changes them."""
    if FEATURE_EXTRACTOR in own.files or "feature_extractor" in own.settings(PROCESSOR, owner.reference):
        return {}, []
    theirs = read_companions(other, (FEATURE_EXTRACTOR, PROCESSOR).__contains__)
    inner = theirs.settings(PROCESSOR, other.reference).get("feature_extractor")
    settings = inner if isinstance(inner, dict) else {}
    settings = settings or theirs.settings(FEATURE_EXTRACTOR, other.reference)
    if not settings:
        return {}, []
    code = {name: content for name, content in theirs.files.items() if name.endswith(".py") and modules_of(settings)}
    return {FEATURE_EXTRACTOR: encode_companion(settings), **code}, []


def _tokenizer(own: Companions, owner: Checkpoint, other: Checkpoint) -> _More:
    """Return the base's tokenizer and generation settings where a fine-tune lacks them: training code may save none."""
    rows, has_tokenizer = _vocabulary(owner), any(map(is_tokenizer, own.files))
    settled = GENERATION in own.files or not _is_class_of(other, own.settings(CONFIG, owner.reference))
    if rows is None or (has_tokenizer and settled):
        return {}, []

    def lacks(name: str) -> bool:
        words = is_tokenizer(name) or is_chat_template(name)
        return (words and not has_tokenizer) or (name == GENERATION and not settled)

    theirs = read_companions(other, lacks).files
    missing = [] if has_tokenizer else ["tokenizer"]
    if theirs and rows == _vocabulary(other):
        missing = [what for what in missing if any(map(is_tokenizer, theirs))]
        missing += [GENERATION] if GENERATION in theirs else []
        text = f"{owner.reference} has no {' and no '.join(missing)}: the base's is taken, as both have {rows} words"
        return theirs, [Finding(Level.NOTE, text)]
    if has_tokenizer or not (theirs or _names_tokenizer(own, owner)):
        return {}, []
    why = "the base's is of another vocabulary" if any(map(is_tokenizer, theirs)) else "neither has the base"
    text = f"{owner.reference} has no tokenizer, and {why}: add {TOKENIZER} and its files"
    return {}, [Finding(Level.WARNING, text)]


def _is_class_of(model: Checkpoint, settings: dict[str, Any]) -> bool:
    """Return whether a model is of the class that a config names, if it names one."""
    stated = settings.get("architectures")
    return not stated or stated == read_companion_json(model, CONFIG).get("architectures")


def _names_tokenizer(own: Companions, owner: Checkpoint) -> bool:
    """Return whether one of a model's configurations says that it has a processor with a tokenizer, or a tokenizer."""
    stated = own.settings(FEATURE_EXTRACTOR, owner.reference).get("processor_class")
    return PROCESSOR in own.files or bool(stated or own.settings(CONFIG, owner.reference).get("tokenizer_class"))


def _vocabulary(model: Checkpoint) -> int | None:
    return next((shape[0] for name, shape in model.shapes.items() if shape and _EMBEDDINGS.fullmatch(name)), None)


def config_like(
    config: dict[str, Any], owner: Checkpoint, other: Checkpoint, names: Collection[str]
) -> dict[str, Any] | None:
    """Return a config for the class of a model that has none; None if it cannot be told what its class is.

    Args:
        config: of the other model.
        owner: the model without one.
        other: the other model.
        names: of the output's tensors.
    """
    if all(_EMBEDDINGS.fullmatch(name) for name in {*names} ^ {*other.tensors}):  # one may store what the other ties
        return config | _vocabulary_size(config, owner, other)
    family = str(config.get("model_type"))
    if family not in OWN_PREFIX or owner.naming.prefix not in ("", OWN_PREFIX[family]) or _body(owner) != _body(other):
        return None
    settings = class_like(
        config.get("architectures"), {name: shape for name, shape in owner.shapes.items() if name in names}
    )
    return None if settings is None else config | settings


def _vocabulary_size(config: dict[str, Any], owner: Checkpoint, other: Checkpoint) -> dict[str, int]:
    """Return the size of a model's vocabulary as a setting, if the other model's config states one."""
    rows, stated = (
        _vocabulary(model) or next(iter(model.shapes.get("lm_head.weight", ())), None) for model in (owner, other)
    )
    return {"vocab_size": rows} if rows and stated and config.get("vocab_size") == stated else {}


def _body(model: Checkpoint) -> set[str]:
    """Return the canonical names of what is no head; fine-tunes may have dropped the embedding of masked frames."""
    names = model.naming.under().values()
    return {name.canonical for name in names if name.inside and not name.is_head} - {"masked_spec_embed"}
