"""Runs weights of any origin in transformers' class of their family, for their hidden states."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechft_merge.checkpoints.companions import json_values
from speechft_merge.errors import CheckpointError, MismatchError, quote
from speechft_merge.executor.device import unusable
from speechft_merge.layouts.structure import locate
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.packages import needs_extra
from speechft_merge.record.layers import INPUT, OUTPUT, LayerKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from speechft_merge.executor.drift import Drift
    from speechft_merge.layouts.structure import Location
    from speechft_merge.plan.plan import PlannedTensor
    from speechft_merge.similarity.inputs import Batch

WHISPER = "whisper"
HOW_TO_RUN = frozenset(
    "attn_implementation _attn_implementation experts_implementation quantization_config return_dict use_return_dict "
    "dtype torch_dtype output_attentions".split()
)
"""Keys of a config.json that do not say what the model is; some make transformers fetch and run code (kernels)."""
MAY_LACK = frozenset({"masked_spec_embed"})
"""Canonical names of what only training uses."""


def load_weights(tensors: Sequence[PlannedTensor]) -> tuple[dict[str, Tensor], dict[str, Drift]]:
    """Carry out a plan in memory: tensors on the CPU by the plan's names, float32 where they are floats.

    Rounded to the plan's element types first, so that they hold what the plan writes to a file.

    Returns:
        The tensors, and the drift of those that are interpolated.

    Raises:
        MismatchError, CheckpointError: see `executor.execute`.
    """
    from speechft_merge.executor.device_buffers import torch_type
    from speechft_merge.executor.executor import execute

    buffers = {tensor.name: _Buffer(tensor.nbytes) for tensor in tensors}
    drifts = execute([(tensor.at(0), buffers[tensor.name]) for tensor in tensors], workers=1)
    loaded = {}
    for tensor in tensors:
        raw, kind = buffers.pop(tensor.name).raw, torch_type(tensor.dtype)
        values = torch.from_numpy(raw).view(kind) if len(raw) else torch.empty(0, dtype=kind)
        loaded[tensor.name] = (values.float() if tensor.dtype.interpolated else values).reshape(tensor.shape)
    return loaded, drifts


_MORE, _MORE_PARAMETERS, _MORE_LAYERS = 4, 10_000_000, 32
"""How much larger than its weights the model of a config may be: what is missing is named, if memory allows."""


class _Buffer:
    """Memory that the executor writes to as if it were a file."""

    def __init__(self, size: int) -> None:
        self.raw = np.empty(size, np.uint8)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`."""
        self.raw[offset : offset + len(data)] = data


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model of transformers in evaluation mode: dropout, layerdrop and SpecAugment are off."""

    name: str
    model: Any
    layers: Mapping[LayerKey, Any]
    """Its blocks, in order, and the norm beside them."""
    locations: Mapping[str, Location]
    """Where in the model each of its weights is, by canonical names."""
    device: torch.device

    def run(self, batch: Batch) -> list[dict[LayerKey, Tensor]]:
        """Return the hidden states of each clip, layer by layer: float32, (frames, width), padding cut off.

        `INPUT` is the input of the first block, then the output of each block, then that of the norm after them;
        where the encoder gives something else again, that is `OUTPUT`.

        Raises:
            CheckpointError: the model cannot be run.
            DeviceError: the device has not enough memory.
            MismatchError: a hidden state is not finite.
        """
        inputs = {name: values.to(self.device) for name, values in batch.inputs.items()}
        try:
            with torch.inference_mode(), _recorded(self.layers) as states:
                last = self.model(**inputs, output_hidden_states=False, return_dict=True).last_hidden_state
        except torch.OutOfMemoryError as error:
            raise unusable(str(self.device), error) from error
        except Exception as error:  # inputs that its config does not go with
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{self.name} cannot be run on {self.device}: {told}") from error
        if not torch.equal(last, [*states.values()][-1]):
            states[OUTPUT] = last
        counts = batch.frames or [last.shape[1]]
        clips = [{key: state[i, :count].float() for key, state in states.items()} for i, count in enumerate(counts)]
        for key, state in states.items():
            if not all(torch.isfinite(clip[key]).all() for clip in clips):
                raise MismatchError(f"{self.name}: layer {key.label} is not finite on the probe ({tuple(state.shape)})")
        return clips


@contextlib.contextmanager
def _recorded(layers: Mapping[LayerKey, Any]) -> Iterator[dict[LayerKey, Tensor]]:
    """Fill a dictionary with the hidden states of one pass, by hooks.

    What transformers itself returns as hidden states changed: 5.16 took the norm after the last block out of them.
    """
    states: dict[LayerKey, Tensor] = {}
    *_, last = (key for key in layers if key.block is not None)

    def keep_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[INPUT] = args[0] if args else kwargs["hidden_states"]

    def keep_output(key: LayerKey, _: Any, __: Any, output: Any) -> None:
        if key.block is not None or last in states:  # a norm before the blocks belongs to their input
            states[key] = output if isinstance(output, torch.Tensor) else output[0]

    handles = [next(iter(layers.values())).register_forward_pre_hook(keep_input, with_kwargs=True)]
    for key, module in layers.items():
        handles.append(module.register_forward_hook(functools.partial(keep_output, key)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: Any, locations: Mapping[str, Location]) -> dict[LayerKey, Any]:
    """Return the encoder's blocks, and the norm beside them, found by their names; empty if there are no blocks."""
    stacks = {name: location.stack for name, location in locations.items() if location.block == 0}
    blocks: dict[LayerKey, Any] = {}
    norms: dict[LayerKey, Any] = {}
    for name, module in model.named_modules():
        stack = next((stack for first, stack in stacks.items() if first.startswith(f"{name}.0.")), None)
        if stack is not None and not blocks:
            blocks = {LayerKey("layers", stack, number): block for number, block in enumerate(module)}
        elif f"{name}.weight" in locations and locations[f"{name}.weight"].part == "final_norm":
            norms[LayerKey.of(locations[f"{name}.weight"])] = module
    return blocks and blocks | norms


def build_encoder(name: str, config: Mapping[str, Any], weights: dict[str, Tensor], device: torch.device) -> Encoder:
    """Build the encoder class of a configuration, with weights under its names (no prefix, no heads).

    Raises:
        CheckpointError: transformers does not know the model, or the weights do not fill it.
        UsageError: transformers is not installed.
    """
    with needs_extra("transformers"):
        import transformers
    settings = _configuration(name, config)
    model_class: Any = (
        transformers.models.whisper.modeling_whisper.WhisperEncoder
        if settings.model_type == WHISPER
        else transformers.MODEL_MAPPING.get(type(settings), None)
    )
    if model_class is None:
        raise CheckpointError(f"{name}: transformers has no bare model class for {settings.model_type!r}")
    settings.add_adapter = False  # it follows the encoder's output
    try:
        with _quiet():
            _require_size(name, settings, model_class, weights)
            model, found = _load(model_class, settings, weights)
            parts = _in_parts(weights, {key: model.state_dict()[key] for key in found["missing_keys"]})
            if parts:
                model, found = _load(model_class, settings, weights | parts)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign config.json may raise anything
        raise CheckpointError(f"{name}: its config does not describe a model: {error}") from error
    wrong = [key for key in found["missing_keys"] if canonical(key) not in MAY_LACK] or list(found["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{name}: {len(wrong)} tensors of {model_class.__name__} are not in it, or have other shapes, first "
            f"{wrong[0]!r}",
            hint="give it the config.json of the same model as its weights",
        )
    locations = locate({canonical(name): tuple(values.shape) for name, values in model.state_dict().items()})
    layers = find_layers(model, locations)
    if not layers:
        raise CheckpointError(
            f"{name}: {model_class.__name__} has no list of transformer blocks that could be compared"
        )
    try:
        return Encoder(name, model.eval().to(device), layers, locations, device)
    except torch.OutOfMemoryError as error:
        raise unusable(str(device), error) from error


def _require_size(name: str, settings: Any, model_class: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse a config of a model much larger than its weights, before memory is taken for what they do not fill.

    Raises:
        CheckpointError: it is.
    """
    for key, value in settings.to_dict().items():
        most = len(weights) + _MORE_LAYERS if key.endswith("layers") else _MORE_PARAMETERS
        if any(isinstance(number, int) and number > most for number in json_values(value)):
            raise CheckpointError(
                f"{name}: its config states a {key} of {quote(value)}, at most {most} goes with its file"
            )
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


def _in_parts(weights: Mapping[str, Tensor], missing: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _configuration(name: str, config: Mapping[str, Any]) -> Any:
    import transformers

    kind = config.get("model_type")
    try:
        return transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k not in HOW_TO_RUN})
    except Exception as error:  # a foreign config.json may raise anything
        raise CheckpointError(
            f"{name}: transformers {transformers.__version__} does not know its model_type {kind!r}, or cannot "
            "use its config.json"
        ) from error


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 matrix products without TF32, whose mantissa has ten bits."""
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
