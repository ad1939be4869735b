"""Finds the encoders in the models of a comparison, and measures how far fine-tuning moved each layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.model_config import read_model_config
from speechft_merge.errors import CheckpointError, UsageError
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.executor import execute
from speechft_merge.layouts.configuration import DECOAR2
from speechft_merge.layouts.naming import TRANSFORMERS
from speechft_merge.layouts.structure import is_decoder
from speechft_merge.plan.operations import Copy
from speechft_merge.plan.plan import Action, PlannedTensor, make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.record.layers import INPUT, LayerKey
from speechft_merge.record.manifest import read_manifest
from speechft_merge.similarity.encoders import load_weights
from speechft_merge.similarity.families import find_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.checkpoints.model_config import ModelConfig
    from speechft_merge.executor.kept import Kept
    from speechft_merge.plan.plan import Plan
    from speechft_merge.similarity.encoders import Encoder


@dataclass(frozen=True, slots=True)
class ComparedModels:
    """The opened models of a comparison; the caller closes them."""

    base: Checkpoint
    finetuned: Sequence[Checkpoint]
    """The fine-tunes; the first is compared."""
    plan: Plan
    """The plan of the merge of these very checkpoints."""
    merged: Checkpoint | None = None
    """The merge as it was written; None to carry out the plan in memory."""
    drifts: Mapping[str, Drift] | None = None
    """Output name -> drift as the merge measured it, of nothing else; None to measure that of every tensor."""
    kept: Kept | None = None
    """What the merge read of them."""

    @property
    def recipe(self) -> dict[str, Any]:
        """How the merge is made; empty for one that was written by another plan than this, unless it tells."""
        if self.merged is None or self.drifts is not None:
            return self.plan.recipe.to_json()
        made = read_manifest(Path(self.merged.reference))
        try:  # one of another version may lack keys, or have others
            return {} if made is None else Recipe.from_json(made.recipe).to_json()
        except UsageError:
            return {}

    @property
    def warnings(self) -> list[str]:
        """What a reader of the comparison must know about the models."""
        count = len(self.finetuned)
        return [f"of {count} fine-tunes only the first is compared with base and merge"] if count > 1 else []


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """The encoder of a checkpoint, as transformers' class has it, before its weights are read."""

    reference: str
    config: dict[str, Any]
    extractor: dict[str, Any]
    """The settings of its feature extractor; empty where there are none."""
    tensors: list[PlannedTensor]
    """Copies to be read, by the names of the class that runs it, see `families`."""


def encoder_sources(models: ComparedModels, *, decoder: bool = False) -> list[EncoderSource]:
    """Return the encoders of base, first fine-tune and, where it was written, merge; with their decoders if asked to.

    Raises:
        CheckpointError: a model has no config, and no other model's fits.
        UsageError: it has no decoder.
        MismatchError: the written merge does not fit the base.
    """
    checkpoints = [models.base, models.finetuned[0]]
    if models.merged is not None:
        make_plan(models.base, [models.merged], Recipe())
        checkpoints.append(models.merged)
    found = [read_model_config(checkpoint) for checkpoint in checkpoints]
    shared = min(found, key=lambda model: (model.config is None, not model.stated))
    return [_encoder_source(*each, shared, decoder) for each in zip(checkpoints, found, strict=True)]


def _encoder_source(checkpoint: Checkpoint, model: ModelConfig, shared: ModelConfig, decoder: bool) -> EncoderSource:
    """Use the model's own settings; `shared`, those of a model with the same encoder, where its files state none."""
    told = model if model.config and model.stated else shared
    config = told.config
    if not config:
        why = f" ({model.problem})" if checkpoint.naming.layout != TRANSFORMERS else ""
        beside = "" if model.family == DECOAR2 else ", or put the config.json of its encoder beside the weights"
        raise CheckpointError(
            f"{checkpoint.reference}: there is no config.json beside the weights, so the model cannot be run{why}",
            hint=f"give the base as its lab published it{beside}",
        )
    runs = find_class(checkpoint.reference, config, len(checkpoint.tensors), decoder=decoder)
    tensors = []
    for own, name in checkpoint.naming.under().items():
        span, spelled = checkpoint.tensors[own], runs.spell(name)
        if spelled is not None:
            copy = Copy(span)
            tensors.append(PlannedTensor(spelled, Action.COPIED, "", name.location, span.dtype, span.shape, copy))
    if decoder and not any(is_decoder(tensor.location.stack) for tensor in tensors):
        raise UsageError(f"{checkpoint.reference} has no text decoder", hint="leave out --decoder")
    return EncoderSource(checkpoint.reference, config, told.extractor or {}, tensors)


def load_encoder(source: EncoderSource, kept: Kept | None = None) -> dict[str, Tensor]:
    """Return an encoder's weights by the names of its class: from memory, where a merge just read and kept them."""
    spans = {tensor.inputs[0].storage_key: tensor.inputs[0] for tensor in source.tensors}
    if kept is not None:
        spans = {key: kept.take(span) for key, span in spans.items()}
    copies = [Copy(spans[tensor.inputs[0].storage_key]) for tensor in source.tensors]
    tensors = [replace(tensor, operation=copy) for tensor, copy in zip(source.tensors, copies, strict=True)]
    return load_weights(tensors)[0]


def merge_in_memory(
    models: ComparedModels, sources: Sequence[EncoderSource]
) -> tuple[EncoderSource, dict[str, Tensor], dict[str, Drift]]:
    """Carry out the plan for the encoder, without writing it.

    Returns:
        What the merge is called and run by, its weights, and the drift of every tensor that it interpolated: both by
        the names of the encoder's class.

    Raises:
        MismatchError, CheckpointError: see `executor.execute`.
    """
    recipe, names = models.plan.recipe, encoder_names(models, sources)
    loaded, drifts = load_weights([tensor for tensor in models.plan.tensors if tensor.name in names])
    weights = {name: loaded[planned] for planned, those in names.items() for name in those}
    alphas = "alphas by layer" if recipe.layer_alpha else f"alpha {recipe.alpha:g}"
    source = replace(sources[1 if recipe.keep_head else 0], reference=f"merged in memory, {alphas}")
    return source, weights, _by_encoder_names(drifts, models.plan, sources[0])


def encoder_names(models: ComparedModels, sources: Sequence[EncoderSource]) -> dict[str, list[str]]:
    """Return the plan's name of each tensor of the encoder -> its names in the encoder's class: several where tied."""
    owner, names = models.finetuned[0] if models.plan.recipe.keep_head else models.base, _names_by_storage(sources)
    keys = {tensor.name: _storage_key(tensor, owner) for tensor in models.plan.tensors}
    return {name: names[key] for name, key in keys.items() if key in names}


def measure_drifts(models: ComparedModels, base: EncoderSource, known: Mapping[str, Drift]) -> dict[str, Drift]:
    """Return how far fine-tuning moved each tensor of the encoder, by the names of its class.

    As the merge measured it if it was just made; otherwise tensors that are not in `known` are interpolated again, and
    the results discarded.
    """
    if models.drifts is not None:
        return _by_encoder_names(models.drifts, models.plan, base)
    names = _names_by_storage([base])
    asked = models.plan.recipe if len(models.finetuned) > 1 else Recipe()
    plan = make_plan(models.base, [*models.finetuned], Recipe(0.25, weight=asked.weight, method=asked.method))
    mixed = [tensor for tensor in plan.tensors if tensor.action is Action.INTERPOLATED]
    todo = [
        replace(tensor, name=name)
        for tensor in mixed
        for name in names.get(tensor.inputs[0].storage_key, ())
        if name not in known
    ]
    return {**known, **execute([(tensor.at(0), None) for tensor in todo], workers=1)}


def _storage_key(tensor: PlannedTensor, owner: Checkpoint) -> tuple[int, int, int]:
    """Return where the owner has a planned tensor; its first input may be computed, or of another model."""
    return owner.tensors.get(tensor.name, tensor.inputs[0]).storage_key


def _names_by_storage(sources: Iterable[EncoderSource]) -> dict[tuple[int, int, int], list[str]]:
    """Map the bytes of a tensor to its names in the encoder's class: several if the file tied it."""
    found: dict[tuple[int, int, int], list[str]] = {}
    for source in sources:
        for tensor in source.tensors:
            found.setdefault(tensor.inputs[0].storage_key, []).append(tensor.name)
    return found


def _by_encoder_names(drifts: Mapping[str, Drift], plan: Plan, base: EncoderSource) -> dict[str, Drift]:
    """Rename drifts from the plan's names; the first input of an interpolated tensor is the base's."""
    names = _names_by_storage([base])
    measured = [tensor for tensor in plan.tensors if tensor.name in drifts]
    return {name: drifts[tensor.name] for tensor in measured for name in names.get(tensor.inputs[0].storage_key, ())}


def drift_by_layer(
    drifts: Mapping[str, Drift], encoder: Encoder, layers: Iterable[LayerKey]
) -> dict[LayerKey, float | None]:
    """Return ||finetuned - base|| / ||base|| of the weights of each layer; those outside the layers count to `INPUT`.

    Args:
        drifts: by the names of the encoder's class.
        encoder: of the base; weights that it does not run, such as an adapter's, count nowhere, and neither do any
            where no blocks are found.
        layers: the rows of the comparison.
    """
    groups: dict[LayerKey, list[Drift]] = {key: [] for key in layers}
    for name in drifts.keys() & encoder.locations.keys() if encoder.layers else ():
        key = LayerKey.of(encoder.locations[name])
        other = LayerKey(INPUT.part, key.stack)
        groups[key if key in groups else other if other in groups else INPUT].append(drifts[name])
    return {key: Drift.relative(found) for key, found in groups.items()}
