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
from speechft_merge.layouts.structure import is_decoder, locate
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.record.layers import INPUT, OUTPUT, LayerKey
from speechft_merge.similarity.decoding import write
from speechft_merge.similarity.families import find_class
from speechft_merge.similarity.filling import asked, fill, quiet
from speechft_merge.similarity.inputs import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from speechft_merge.executor.drift import Drift
    from speechft_merge.layouts.structure import Location
    from speechft_merge.plan.plan import PlannedTensor


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
    """Its blocks, in order, and the norm beside them; empty where none are found, and the class gives hidden states."""
    locations: Mapping[str, Location]
    """Where in the model each of its weights is, by canonical names."""
    device: torch.device
    decodes: bool = False
    """Whether it is a whole model whose text decoder is compared, too."""

    def with_tokens(self, batch: Batch) -> Batch:
        """Return a clip's inputs with what this model writes of it, for the decoders; the very batch without one.

        Raises:
            CheckpointError, DeviceError: see `run`.
        """
        if not self.decodes:
            return batch
        inputs = {name: values.to(self.device) for name, values in batch.inputs.items()}
        with running(self.name, self.device), torch.inference_mode(), quiet():
            tokens = write(self.name, self.model, inputs)
        return Batch({**batch.inputs, "decoder_input_ids": tokens}, batch.frames)

    def run(self, batch: Batch) -> list[dict[LayerKey, Tensor]]:
        """Return the hidden states of each clip, layer by layer: float32, (frames, width), padding cut off.

        `INPUT` is the input of the first block, then the output of each block, then that of the norm after them;
        where the encoder gives something else again, that is `OUTPUT`.

        Raises:
            CheckpointError: the model cannot be run.
            DeviceError: the device has not enough memory.
            MismatchError: a hidden state is not finite.
        """
        states = self._states({name: values.to(self.device) for name, values in batch.inputs.items()})
        counts: list[int] | list[None] = batch.frames or [None]  # of one clip, all
        clips = [
            {key: state[i, : None if is_decoder(key.stack) else count].float() for key, state in states.items()}
            for i, count in enumerate(counts)
        ]
        for key, state in states.items():
            if not all(torch.isfinite(clip[key]).all() for clip in clips):
                raise MismatchError(f"{self.name}: layer {key.label} is not finite on the probe ({tuple(state.shape)})")
        return clips

    def _states(self, inputs: Mapping[str, Tensor]) -> dict[LayerKey, Tensor]:
        """Return the hidden states of all clips, layer by layer: (clips, frames, width).

        Raises:
            CheckpointError, DeviceError: see `run`.
        """
        title, taken = type(self.model).__name__, getattr(self.model, "main_input_name", None)
        if taken is not None and taken not in inputs:
            raise CheckpointError(
                f"{self.name}: {title} takes {taken}, the feature extractor makes {' and '.join(inputs)}",
                hint="put the preprocessor_config.json that goes with the model beside the base's weights",
            )
        options = {"use_cache": False} if self.decodes else {}
        options |= asked(self.model.forward, output_hidden_states=not self.layers)
        with running(self.name, self.device), torch.inference_mode(), _recorded(self.layers) as states:
            out = self.model(**inputs, **options)
        last, given = getattr(out, "last_hidden_state", None), getattr(out, "hidden_states", None)
        if not self.layers and given:
            states = {
                LayerKey("layers", block=number - 1) if number else INPUT: each for number, each in enumerate(given)
            }
        if not states or (last is None and not self.decodes):
            raise CheckpointError(f"{self.name}: {title} does not give hidden states, as an encoder would")
        if last is not None and not torch.equal(last, [*states.values()][-1]):
            states[OUTPUT] = last
        for key, state in states.items():
            if state.dim() != 3:
                raise CheckpointError(
                    f"{self.name}: layer {key.label} of {title} is of {state.dim()} dimensions, not 3"
                )
        return states


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
    blocks = {key.stack: key for key in layers if key.block is not None}  # the last one of each stack

    def keep_input(key: LayerKey, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[key] = args[0] if args else kwargs["hidden_states"]

    def keep_output(key: LayerKey, _: Any, __: Any, output: Any) -> None:
        after = blocks.get(key.stack, next(iter(blocks.values())))
        if key.block is not None or after in states:  # a norm before the blocks belongs to their input
            states[key] = output if isinstance(output, torch.Tensor) else output[0]

    handles = []
    for key, module in layers.items():
        if key.block == 0:
            given = LayerKey(INPUT.part, key.stack) if is_decoder(key.stack) else INPUT
            handles.append(module.register_forward_pre_hook(functools.partial(keep_input, given), with_kwargs=True))
        handles.append(module.register_forward_hook(functools.partial(keep_output, key)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: Any, locations: Mapping[str, Location], *, decoder: bool = False) -> dict[LayerKey, Any]:
    """Return the blocks of the encoder, and the norm beside them, found by their names; empty if there are no blocks.

    Args:
        model: the encoder, or the whole model.
        locations: of its tensors by canonical names.
        decoder: return the blocks of all stacks.
    """
    stacks = {name: location.stack for name, location in locations.items() if location.block == 0}
    blocks: dict[LayerKey, Any] = {}
    norms: dict[LayerKey, Any] = {}
    for name, module in model.named_modules():
        stack = next((stack for first, stack in stacks.items() if first.startswith(f"{name}.0.")), None)
        if stack is not None and (decoder or not blocks):
            blocks |= {LayerKey("layers", stack, number): block for number, block in enumerate(module)}
        elif f"{name}.weight" in locations and locations[f"{name}.weight"].part == "final_norm":
            norms[LayerKey.of(locations[f"{name}.weight"])] = module
    return blocks and blocks | norms


def build_encoder(
    name: str, config: Mapping[str, Any], weights: dict[str, Tensor], device: torch.device, *, decoder: bool = False
) -> Encoder:
    """Build the class that runs an encoder, with weights under its names, see `families`.

    Raises:
        CheckpointError: transformers does not know the model, or the weights do not fill it.
        UsageError: transformers is not installed, or the model is to have a decoder, and has none.
    """
    runs = find_class(name, config, len(weights), decoder=decoder)
    runs.settings.add_adapter = False  # it follows the encoder's output
    model = fill(name, runs.settings, runs.model_class, weights)
    return wrap_encoder(name, model, device, runs.prefix, decoder=decoder)


def wrap_encoder(name: str, model: Any, device: torch.device, prefix: str = "", *, decoder: bool = False) -> Encoder:
    """Find the blocks of an encoder of transformers' classes, and move it to a device.

    Args:
        name: of the model, for messages.
        model: the encoder.
        device: where it runs.
        prefix: of its names in the whole model, which tell what its stack is called.
        decoder: the model is a whole one, and its decoder is to be compared, too.

    Raises:
        CheckpointError: it has no list of blocks, and gives no hidden states.
        DeviceError: the device has not enough memory.
    """
    outer = f"{model.base_model_prefix}." if decoder else ""
    shapes = {canonical(own): tuple(values.shape) for own, values in model.state_dict().items()}
    inner = {own: prefix + own.removeprefix(outer) for own in shapes if own.startswith(outer)}
    located = locate({name: shapes[own] for own, name in inner.items()})
    locations = {own: located[name] for own, name in inner.items()}
    layers = find_layers(model, locations, decoder=decoder)
    if not layers and not asked(model.forward, output_hidden_states=True):
        raise CheckpointError(
            f"{name}: {type(model).__name__} has no list of transformer blocks that could be compared, and gives no "
            "hidden states"
        )
    try:
        model = model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise unusable(str(device), error) from error
    return Encoder(name, model, layers, locations, device, decoder)


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
