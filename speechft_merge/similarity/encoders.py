"""Runs weights of any origin in transformers' class of their family, for their hidden states."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechft_merge.errors import CheckpointError, MismatchError, SpeechFTMergeError
from speechft_merge.executor.device import unusable
from speechft_merge.layouts.structure import locate
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.packages import needs_extra
from speechft_merge.record.layers import INPUT, OUTPUT, LayerKey
from speechft_merge.similarity.filling import fill, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from speechft_merge.executor.drift import Drift
    from speechft_merge.layouts.structure import Location
    from speechft_merge.plan.plan import PlannedTensor
    from speechft_merge.similarity.inputs import Batch

WHISPER = "whisper"


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
        with running(self.name, self.device), torch.inference_mode(), _recorded(self.layers) as states:
            last = self.model(**inputs, output_hidden_states=False, return_dict=True).last_hidden_state
        if not torch.equal(last, [*states.values()][-1]):
            states[OUTPUT] = last
        counts = batch.frames or [last.shape[1]]
        clips = [{key: state[i, :count].float() for key, state in states.items()} for i, count in enumerate(counts)]
        for key, state in states.items():
            if not all(torch.isfinite(clip[key]).all() for clip in clips):
                raise MismatchError(f"{self.name}: layer {key.label} is not finite on the probe ({tuple(state.shape)})")
        return clips


@contextlib.contextmanager
def running(name: str, device: torch.device) -> Iterator[None]:
    """Turn what a model of foreign files raises when it runs into an error that names it.

    Raises:
        CheckpointError: it cannot be run.
        DeviceError: the device has not enough memory.
    """
    try:
        yield
    except SpeechFTMergeError:
        raise
    except torch.OutOfMemoryError as error:
        raise unusable(str(device), error) from error
    except Exception as error:  # inputs that its config does not go with
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name} cannot be run on {device}: {told}") from error


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
    settings = read_settings(name, config)
    model_class: Any = (
        transformers.models.whisper.modeling_whisper.WhisperEncoder
        if settings.model_type == WHISPER
        else transformers.MODEL_MAPPING.get(type(settings), None)
    )
    if model_class is None:
        raise CheckpointError(f"{name}: transformers has no bare model class for {settings.model_type!r}")
    settings.add_adapter = False  # it follows the encoder's output
    return wrap_encoder(name, fill(name, settings, model_class, weights), device)


def wrap_encoder(name: str, model: Any, device: torch.device) -> Encoder:
    """Find the blocks of an encoder of transformers' classes, and move it to a device.

    Raises:
        CheckpointError: it has no list of blocks.
        DeviceError: the device has not enough memory.
    """
    locations = locate({canonical(name): tuple(values.shape) for name, values in model.state_dict().items()})
    layers = find_layers(model, locations)
    if not layers:
        raise CheckpointError(
            f"{name}: {type(model).__name__} has no list of transformer blocks that could be compared"
        )
    try:
        return Encoder(name, model.eval().to(device), layers, locations, device)
    except torch.OutOfMemoryError as error:
        raise unusable(str(device), error) from error


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
