"""Any checkpoint of a speech encoder as transformers would have it: names, configuration, family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.companions import CONFIG, FEATURE_EXTRACTOR, read_companion_json
from speechft_merge.errors import CheckpointError
from speechft_merge.layouts.alignment import backbone_prefix
from speechft_merge.layouts.configuration import derive_config, derive_extractor
from speechft_merge.layouts.family import Family, family_of
from speechft_merge.layouts.naming import TRANSFORMERS, read_naming
from speechft_merge.layouts.structure import canonical, is_head

if TYPE_CHECKING:
    from speechft_merge.checkpoints import Checkpoint, TensorSpan


@dataclass(frozen=True, slots=True)
class TransformersView:
    """An encoder as transformers' bare class has it."""

    tensors: dict[str, TensorSpan]
    """By the bare class's names, weight norm as `weight_g` and `weight_v`; heads are left out."""
    heads: dict[str, TensorSpan]
    """Everything else, as far as possible by the names of transformers' task classes."""
    config: dict[str, Any] | None
    """The config.json: the file's own, or derived from the lab's configuration; None if neither is possible."""
    config_problem: str
    """Why there is none."""
    extractor: dict[str, Any] | None
    """The preprocessor_config.json, likewise; None without a config, or if nothing tells it."""
    family: str | None
    """transformers' model_type, or `decoar2`; None if nothing tells it."""
    title: str
    """The family and its size, for people."""
    layout: str
    """Whose names the file has: `transformers`, `fairseq` or `torchaudio`."""
    prefix: str
    """What stands before the encoder's names in the file."""
    names: dict[str, str]
    """The file's own name -> that in `tensors` or `heads`."""


def transformers_view(checkpoint: Checkpoint, root: str | None = None) -> TransformersView:
    """A checkpoint in any layout and container, seen as transformers would have it; nothing is read but its config.

    Args:
        checkpoint: the index of the file or files.
        root: the prefix of the encoder that is meant, where a file has several (teacher and student).

    Raises:
        CheckpointError: its config.json is not JSON.
    """
    naming = read_naming(checkpoint.tensors)
    shapes = {naming.names[name]: span.shape for name, span in checkpoint.tensors.items()}
    roots = naming.roots or (backbone_prefix(shapes),)
    prefix = root if root is not None and root in roots else roots[0]
    names = _short(naming.names, prefix)
    inside = {own for own, theirs in naming.names.items() if theirs.startswith(prefix) and not is_head(names[own])}
    all_shapes = {names[own]: span.shape for own, span in checkpoint.tensors.items()}
    config, problem, family = _configure(checkpoint, naming.layout, all_shapes)
    return TransformersView(
        tensors={names[own]: span for own, span in checkpoint.tensors.items() if own in inside},
        heads={names[own]: span for own, span in checkpoint.tensors.items() if own not in inside},
        config=config,
        config_problem=problem,
        extractor=_extractor(checkpoint, naming.layout, all_shapes) if config is not None else None,
        family=family.model_type,
        title=family.title,
        layout=naming.layout,
        prefix=prefix,
        names=names,
    )


def _short(names: dict[str, str], prefix: str) -> dict[str, str]:
    """Own names -> without the encoder's prefix; beside it, without the words before it unless that name is taken."""
    parent = prefix[: prefix.rstrip(".").rfind(".") + 1]
    short = {own: canonical(name.removeprefix(prefix)) for own, name in names.items() if name.startswith(prefix)}
    taken = set(short.values())
    for own, name in names.items():
        if own not in short:
            beside = canonical(name.removeprefix(parent))
            short[own] = own if beside in taken else beside
            taken.add(short[own])
    return short


def _extractor(checkpoint: Checkpoint, layout: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """What a lab's configuration tells of how waveforms were prepared, or the file beside the weights."""
    origin = checkpoint.origin
    if origin is not None and (origin.task or "normalize" in origin.model):
        return derive_extractor(shapes, origin.model, origin.task)
    own = read_companion_json(checkpoint, FEATURE_EXTRACTOR)
    return own or (None if layout == TRANSFORMERS else derive_extractor(shapes, {}, {}))


def _configure(
    checkpoint: Checkpoint, layout: str, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Any] | None, str, Family]:
    own = read_companion_json(checkpoint, CONFIG)
    stated = own.get("model_type")
    stated = stated if isinstance(stated, str) else None
    settings = checkpoint.origin.model if checkpoint.origin else {}
    hint = settings.get("_name")
    family = family_of(shapes, stated, hint if isinstance(hint, str) else None)
    if stated and layout == TRANSFORMERS:
        return own, "", family
    try:  # HuBERT and wav2vec 2.0 are one architecture: where nothing tells them apart, either will do
        return derive_config(family.model_type or "wav2vec2", shapes, settings), "", family
    except CheckpointError as error:
        return (own if stated else None), str(error), family
