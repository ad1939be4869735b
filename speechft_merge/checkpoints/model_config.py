"""Finds a checkpoint's family and the configuration that transformers needs, in its files or derived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints.companions import CONFIG, read_companion_json, read_extractor
from speechft_merge.errors import CheckpointError
from speechft_merge.layouts.configuration import derive_config, derive_extractor
from speechft_merge.layouts.family import family_of
from speechft_merge.layouts.naming import TRANSFORMERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint

    Shapes = Mapping[str, tuple[int, ...]]

_TELLING = frozenset({"encoder_attention_heads", "n_audio_head"})
"""Settings of an encoder's structure, by fairseq and openai-whisper; where one is, the others are."""


class ModelConfig(NamedTuple):
    """Family and configuration of the encoder in a checkpoint."""

    config: dict[str, Any] | None
    """The config.json: the file's own, or derived from the lab's configuration; None if neither is possible. That of
    DeCoAR 2.0 only `similarity` can read."""
    problem: str
    """Why there is no config."""
    extractor: dict[str, Any] | None
    """The preprocessor_config.json, likewise; None without a config, or if unknown."""
    family: str | None
    """transformers' model_type, or `decoar2`; None if unknown."""
    title: str
    """The family and its size, as they are shown."""
    stated: bool
    """Whether its files say what no shape shows, such as where norms are; else that is guessed."""


def read_model_config(checkpoint: Checkpoint, prefix: str | None = None) -> ModelConfig:
    """Return the family and configuration of a model in any layout and container; only its JSON files are read.

    Args:
        checkpoint: the index of the file or files.
        prefix: of the encoder to describe, where a file has several (teacher and student).

    Raises:
        CheckpointError: its config.json is not JSON.
    """
    naming, settings = checkpoint.naming, checkpoint.origin.model if checkpoint.origin else {}
    shapes = {name.canonical: naming.shapes[own] for own, name in naming.under(prefix).items()}
    own = read_companion_json(checkpoint, CONFIG)
    stated, hint = _text(own.get("model_type")), _text(settings.get("_name"))
    family = family_of(shapes, stated, hint)
    config, problem = (own if stated else None), ""
    if config is None or naming.layout != TRANSFORMERS:
        try:  # HuBERT and wav2vec 2.0 are one architecture: where nothing distinguishes them, either will do
            config = derive_config(family.model_type or "wav2vec2", shapes, settings)
        except CheckpointError as error:
            problem = str(error)
    extractor = _extractor(checkpoint, shapes) if config is not None else None
    says = bool(stated) or not _TELLING.isdisjoint(settings)
    return ModelConfig(config, problem, extractor, family.model_type, family.title, says)


def _extractor(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, Any] | None:
    """Return how waveforms are prepared, by a lab's configuration or the file beside the weights."""
    origin = checkpoint.origin
    if origin is not None and (origin.task or "normalize" in origin.model):
        return derive_extractor(shapes, origin.model, origin.task)
    own = read_extractor(checkpoint)
    return own or (None if checkpoint.naming.layout == TRANSFORMERS else derive_extractor(shapes, {}, {}))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
