"""Sets a live model of transformers to one merge of opened models after the other; the models are read once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechft_merge.checkpoints.companions import GENERATION, parse_companion
from speechft_merge.errors import CheckpointError, MismatchError, ScoreError, UsageError, amount
from speechft_merge.executor.device_buffers import torch_type
from speechft_merge.executor.in_place import load_tensor, write_into
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.output.formats import parse_config
from speechft_merge.packages import needs_extra
from speechft_merge.plan.operations import Copy
from speechft_merge.plan.plan import Action, PlannedTensor
from speechft_merge.similarity.encoders import build_encoder, load_weights, wrap_encoder
from speechft_merge.similarity.families import ENCODER_PREFIX
from speechft_merge.similarity.filling import fill, in_parts, may_lack, read_settings
from speechft_merge.similarity.models import ComparedModels, encoder_names, encoder_sources, load_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.plan.plan import Plan
    from speechft_merge.similarity.encoders import Encoder


@dataclass(frozen=True)
class LiveModel:
    """A model of transformers whose weights are those of a merge, by one plan after the other.

    They are what a file of that merge would hold: rounded to the plan's element types first. What is read of the models
    stays on the device, in their own types.
    """

    module: Any
    """What is set: the encoder, or the whole model."""
    encoder: Encoder
    names: Mapping[str, Sequence[str]]
    """The plan's names -> names in the module's class, weight norm written either way."""
    models: Sequence[Checkpoint]
    _held: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def set(self, plan: Plan) -> None:
        """Write a merge into the module.

        Args:
            plan: of the very models, by another recipe perhaps.

        Raises:
            MismatchError: an input holds numbers that are not finite.
            CheckpointError: an input cannot be read.
            TemporaryError: an input was written to since it was opened.
            ScoreError: somebody gave the module other tensors, by `half()` or `to()`.
        """
        if {name: tensor.data_ptr() for name, tensor in self.module.state_dict().items()} != self._places:
            raise ScoreError(
                "what scored the model before left it with other weights, or elsewhere",
                hint="let the function take a copy before it moves or changes the model",
            )
        held = len(self._held)
        with torch.no_grad():
            for tensor in plan.tensors:
                for name in self.names.get(tensor.name, ()):
                    self._set(name, tensor)
        if len(self._held) > held:  # what was read before is what it was
            for model in self.models:
                for source in model.sources:
                    source.require_unchanged()

    def _set(self, name: str, tensor: PlannedTensor) -> None:
        operation, kind = tensor.at(0).operation, torch_type(tensor.dtype)
        target = self._targets.get(canonical(name))
        if target is not None and target.dtype is kind:
            write_into(target, operation, self._load)
            return
        made = torch.empty(tensor.shape, dtype=kind, device=self.encoder.device)
        write_into(made, operation, self._load)
        for part, values in {name: made}.items() if target is not None else self._split(name, made.float()).items():
            self._targets[canonical(part)].copy_(values)

    def _split(self, kernel: str, made: Tensor) -> dict[str, Tensor]:
        """Return the two parts of a kernel that the module has with weight norm, and the file without."""
        parts = {name: like for name, like in self._targets.items() if name in (f"{kernel}_g", f"{kernel}_v")}
        return in_parts({kernel: made}, parts)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where the module's tensors are, as it was built."""
        return {name: tensor.data_ptr() for name, tensor in self.module.state_dict().items()}

    @cached_property
    def _targets(self) -> dict[str, Tensor]:
        """The module's tensors by their canonical names."""
        return {canonical(name): tensor for name, tensor in self.module.state_dict().items()}

    @cached_property
    def _own(self) -> frozenset[tuple[int, int, int]]:
        """The tensors of the models; what a plan computes of them is not kept."""
        return frozenset(span.storage_key for model in self.models for span in model.tensors.values())

    def _load(self, span: TensorSpan) -> Tensor:
        key = span.storage_key
        if key in self._held:
            return self._held[key]
        values = load_tensor(span).to(self.encoder.device)
        if values.is_floating_point() and not values.isfinite().all():
            raise MismatchError(f"{span.source.name} holds numbers that are not finite")
        if key in self._own:
            self._held[key] = values
        return values


def live_encoder(models: ComparedModels, device: torch.device) -> LiveModel:
    """Build the encoder of the class that a plan writes, to be set to merges.

    Raises:
        CheckpointError, UsageError, DeviceError: see `encoder_sources` and `build_encoder`.
    """
    sources = encoder_sources(models)
    source = sources[1 if models.plan.recipe.keep_head else 0]
    encoder = build_encoder(source.reference, source.config, load_encoder(source), device)
    return LiveModel(encoder.model, encoder, encoder_names(models, sources), [models.base, *models.finetuned])


def live_model(models: ComparedModels, companions: dict[str, bytes], device: torch.device) -> LiveModel:
    """Build the whole model that a plan writes, with its head, to be set to merges.

    Args:
        models: base and fine-tunes, and the plan.
        companions: name -> content of the small files of the output.
        device: where it runs.

    Raises:
        UsageError: the model that is written has no class of transformers with a head.
        CheckpointError: its weights do not fill the class.
    """
    with needs_extra("transformers"):
        import transformers
    owner = models.finetuned[0] if models.plan.recipe.keep_head else models.base
    config = parse_config(companions)
    named = next(iter(config.get("architectures") or ()), "")
    model_class = getattr(transformers, str(named), None)
    if not isinstance(model_class, type):
        raise UsageError(
            f"{owner.reference} names no class of transformers, so there is no whole model to be scored",
            hint="score its encoder (--probe-task), or files (--score)",
        )
    settings, spelled = read_settings(owner.reference, config), owner.naming.full
    copies = [
        PlannedTensor(spelled[own], Action.COPIED, "", name.location, span.dtype, span.shape, Copy(span))
        for own, name in owner.naming.under().items()
        for span in [owner.tensors[own]]
    ]
    module = fill(owner.reference, settings, model_class, load_weights(copies)[0]).eval().requires_grad_(False)
    if GENERATION in companions and hasattr(module, "generation_config"):
        module.generation_config = transformers.GenerationConfig(
            **parse_companion(companions[GENERATION], owner.reference, GENERATION)
        )
    inner, prefix = (module.get_encoder(), ENCODER_PREFIX) if settings.is_encoder_decoder else (module.base_model, "")
    encoder = wrap_encoder(owner.reference, inner, device, prefix)
    module.to(device)
    names = _names_in(module, {tensor.name: spelled.get(tensor.name, tensor.name) for tensor in models.plan.tensors})
    return LiveModel(module, encoder, names, [models.base, *models.finetuned])


def _names_in(module: Any, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of a file's tensors in the class that was filled from it: with the encoder's prefix, or without.

    Raises:
        CheckpointError: a tensor of the class is none of the file's.
    """
    prefix, state = f"{module.base_model_prefix}.", module.state_dict()
    known = {canonical(name) for name in state}
    known |= {name[:-2] for name in known if name.endswith("_g") and f"{name[:-2]}_v" in known}
    found: dict[str, list[str]] = {}
    for planned, name in names.items():
        spellings = (canonical(name), prefix + canonical(name), canonical(name).removeprefix(prefix))
        found[planned] = [spelling for spelling in spellings if spelling in known][:1]
    _require_all(state, {name for spellings in found.values() for name in spellings})
    return found


def _require_all(state: Mapping[str, Tensor], found: set[str]) -> None:
    """Refuse a class with a tensor that no file fills, nor a tie: it would stay as it is in every merge."""
    known = found | {f"{name}_{part}" for name in found for part in "gv"}
    filled = {tensor.data_ptr() for name, tensor in state.items() if canonical(name) in known}
    missing = [
        name
        for name, tensor in state.items()
        if tensor.numel() and tensor.data_ptr() not in filled and not may_lack(name)
    ]
    if missing:
        raise CheckpointError(
            f"the file lacks {amount(len(missing), 'tensor')} of its class by name, first {missing[0]!r}"
        )


def load_processor(companions: Mapping[str, bytes]) -> Any:
    """Return the tokenizer and feature extractor that transformers makes of a model's small files.

    Raises:
        CheckpointError: it makes none.
    """
    with needs_extra("transformers"):
        import transformers
    with tempfile.TemporaryDirectory() as folder:
        for name, content in companions.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for loader in (transformers.AutoProcessor, transformers.AutoFeatureExtractor):
            try:
                return loader.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            except Exception as error:  # foreign files may raise anything
                failed = error
    raise CheckpointError(f"transformers makes no processor of the model's files: {str(failed).splitlines()[0]}")
