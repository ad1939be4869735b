"""Fills a class of transformers with weights of any origin, without running code that its config names."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

from speechft_merge.checkpoints.companions import json_values
from speechft_merge.errors import CheckpointError, amount, quote
from speechft_merge.layouts.configuration import DECOAR2
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.packages import needs_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

HOW_TO_RUN = frozenset(
    "attn_implementation _attn_implementation experts_implementation quantization_config return_dict use_return_dict "
    "dtype torch_dtype output_attentions".split()
)
"""Keys of a config.json that do not say what the model is; some make transformers fetch and run code (kernels)."""
MAY_LACK = frozenset({"masked_spec_embed"})
"""What only training uses: the last words of its names."""

_MORE, _MORE_PARAMETERS, _MORE_LAYERS = 4, 10_000_000, 32
"""How much larger than its weights the model of a config may be: what is missing is named, if memory allows."""


def import_transformers(config: Mapping[str, Any]) -> Any:
    """Return the library, which knows DeCoAR 2.0 too if the configuration is of it.

    Raises:
        UsageError: it is not installed.
    """
    with needs_extra("transformers"):
        import transformers
    if config.get("model_type") == DECOAR2:
        import speechft_merge.similarity.decoar2  # noqa: F401
    return transformers


def read_settings(name: str, config: Mapping[str, Any]) -> Any:
    """Return a config.json as transformers' configuration of its family.

    Raises:
        CheckpointError: transformers does not know the family, or cannot use the file.
        UsageError: transformers is not installed.
    """
    transformers, kind = import_transformers(config), config.get("model_type")
    try:
        return transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k not in HOW_TO_RUN})
    except Exception as error:  # a foreign config.json may raise anything
        raise CheckpointError(
            f"{name}: transformers {transformers.__version__} does not know its model_type {kind!r}, or cannot "
            "use its config.json"
        ) from error


def asked(function: Any, **options: Any) -> dict[str, Any]:
    """Return those of the options that a function of transformers takes: codecs and newer classes lack some."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if takes_all or name in parameters}


def may_lack(name: str) -> bool:
    """Return whether a file may lack a tensor of its class, with or without the encoder's prefix."""
    return canonical(name).rpartition(".")[2] in MAY_LACK


def fill(name: str, settings: Any, model_class: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return a model of a class, in float32, with weights under its names.

    Args:
        name: of the model, for messages.
        settings: what `read_settings` returned.
        model_class: of transformers.
        weights: by the names of the class; its kernels may be folded.

    Raises:
        CheckpointError: the weights do not fill the class.
    """
    try:
        with quiet():
            _require_parameters(name, settings, model_class, weights)
            model, found = _load(model_class, settings, weights)
            parts = in_parts(weights, {key: model.state_dict()[key] for key in found["missing_keys"]})
            if parts:
                model, found = _load(model_class, settings, {**weights, **parts})
    except CheckpointError:
        raise
    except Exception as error:  # a foreign config.json may raise anything
        raise CheckpointError(f"{name}: its config does not describe a model: {error}") from error
    wrong = [key for key in found["missing_keys"] if not may_lack(key)] or list(found["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{name} lacks {amount(len(wrong), 'tensor')} of {model_class.__name__}, or has them in other shapes, "
            f"first {wrong[0]!r}",
            hint="give it the config.json of the same model as its weights",
        )
    return model


def require_size(name: str, settings: Any, tensors: int) -> None:
    """Refuse a config that states sizes which do not go with a file, before a class is built from it.

    Args:
        name: of the model, for messages.
        settings: what `read_settings` returned.
        tensors: how many the file has.

    Raises:
        CheckpointError: it does.
    """
    for key, value in settings.to_dict().items():
        most = tensors + _MORE_LAYERS if key.endswith("layers") else _MORE_PARAMETERS
        if any(isinstance(number, int) and number > most for number in json_values(value)):
            raise CheckpointError(
                f"{name}: its config states a {key} of {quote(value)}, at most {most} goes with its file"
            )


def _require_parameters(name: str, settings: Any, model_class: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse a config of a model much larger than its weights, before memory is taken for what they do not fill.

    Raises:
        CheckpointError: it is.
    """
    require_size(name, settings, len(weights))
    with torch.device("meta"):
        described = sum(values.numel() for values in model_class(settings).state_dict().values())
    there = sum(values.numel() for values in weights.values())
    if described > _MORE * there + _MORE_PARAMETERS:
        raise CheckpointError(
            f"{name}: its config describes a model of {described} parameters, its file has {there}",
            hint="give it the config.json of the same model as its weights",
        )


def _load(model_class: Any, settings: Any, weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    loaded: tuple[Any, Any] = model_class.from_pretrained(
        None, config=settings, state_dict=dict(weights), output_loading_info=True, dtype=torch.float32
    )
    return loaded


def in_parts(weights: Mapping[str, Tensor], missing: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the two parts, which a class is missing, of kernels whose weight norm was folded."""
    parts = {}
    for name, like in missing.items():
        kernel, _, part = canonical(name).rpartition("_")
        if kernel in weights and part == "v":
            parts[f"{kernel}_v"] = weights[kernel]
        elif kernel in weights and part == "g":
            axes = [axis for axis, size in enumerate(like.shape) if size == 1]
            parts[f"{kernel}_g"] = torch.linalg.vector_norm(weights[kernel], dim=axes, keepdim=True)
    return parts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' load report and progress bars: what is missing is checked here. For one thread only."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
