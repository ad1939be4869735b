"""Finds the class of transformers that runs a family: its encoder alone, or the whole model with its text decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from speechft_merge.errors import CheckpointError, UsageError
from speechft_merge.layouts.structure import is_decoder
from speechft_merge.similarity.filling import import_transformers, quiet, read_settings, require_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.layouts.naming import TensorName

ENCODER_PREFIX = "encoder."
"""What the names of an encoder have before them in the class of a model that decodes."""
_INNER = "encoder_config"
"""The setting that is the configuration of an encoder."""


class EncoderClass(NamedTuple):
    """What runs an encoder, with or without a decoder."""

    settings: Any
    """transformers' configuration."""
    model_class: Any
    prefix: str
    """What the names of its weights have before them in the bare class."""
    decodes: bool = False
    """Whether it is the whole model, with its decoder and the projection that writes text."""

    def spell(self, name: TensorName) -> str | None:
        """Return what a tensor is called in the class, weight norm written the old way; None if it has no place."""
        if self.decodes:
            inside = name.inside and not name.is_head
            return f"{self.model_class.base_model_prefix}.{name.canonical}" if inside else name.canonical
        if not name.inside or name.is_head or (self.prefix and is_decoder(name.location.stack)):
            return None
        return name.canonical.removeprefix(self.prefix)


def find_class(name: str, config: Mapping[str, Any], tensors: int, *, decoder: bool = False) -> EncoderClass:
    """Return the class of an encoder.

    It is the bare class of a family. Of one that decodes text (Whisper, Moonshine), it is the encoder alone, as the
    class that the config names has it; of a recogniser whose encoder has a configuration of its own (Parakeet), that.

    Args:
        name: of the model, for messages.
        config: its config.json.
        tensors: how many its file has.
        decoder: find the class of the whole model instead.

    Raises:
        CheckpointError: transformers does not know the model, or has no such class.
        UsageError: transformers is not installed, or the model is to have a decoder, and has none.
    """
    settings, transformers = read_settings(name, config), import_transformers(config)
    kind = type(settings)
    if decoder:
        if not settings.is_encoder_decoder or kind not in transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
            raise UsageError(
                f"{name}: {settings.model_type!r} has no text decoder beside its encoder", hint="leave out --decoder"
            )
        return EncoderClass(settings, transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING[kind], "", decodes=True)
    inner = getattr(settings, _INNER, None)
    if type(inner) in transformers.MODEL_MAPPING:
        return EncoderClass(inner, transformers.MODEL_MAPPING[type(inner)], ENCODER_PREFIX)
    bare = transformers.MODEL_MAPPING.get(kind, None)
    if hasattr(settings, "audio_config"):
        raise CheckpointError(
            f"{name}: the encoder of {settings.model_type!r} stands beside other models",
            hint="compare an encoder that has a file of its own",
        )
    if bare is None:
        raise CheckpointError(f"{name}: transformers has no bare model class for {settings.model_type!r}")
    if not settings.is_encoder_decoder:
        return EncoderClass(settings, bare, "")
    require_size(name, settings, tensors)
    try:
        named = getattr(transformers, str(next(iter(config.get("architectures") or ()), "")), None)
        whole = named if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel) else bare
        with quiet(), torch.device("meta"):
            encoder = whole(settings).get_encoder()
    except Exception as error:  # a foreign config.json may raise anything
        raise CheckpointError(f"{name}: its config does not describe a model: {error}") from error
    if encoder.main_input_name == "input_ids":
        raise CheckpointError(
            f"{name}: for the encoder of {settings.model_type!r} transformers takes "
            f"{type(encoder).__name__}, which reads text",
            hint="compare an encoder whose family it has alone",
        )
    return EncoderClass(encoder.config, type(encoder), ENCODER_PREFIX)
