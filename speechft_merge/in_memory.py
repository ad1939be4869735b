"""Merges models that are loaded, on a CPU or a GPU: by the same plan, to the same bytes as from files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from speechft_merge.arguments import or_default
from speechft_merge.checkpoints.memory import TensorSource, index_tensors
from speechft_merge.errors import MismatchError, UsageError
from speechft_merge.executor.device_buffers import torch_type
from speechft_merge.executor.finite import require_finite
from speechft_merge.executor.in_place import device_of, load_tensor, write_into
from speechft_merge.options import MergeOptions
from speechft_merge.plan.decision import decide
from speechft_merge.plan.findings import Level, texts
from speechft_merge.plan.models import prepare_models
from speechft_merge.plan.operations import Copy, Interpolate
from speechft_merge.plan.plan import make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.plan.operations import Operation, Segment
    from speechft_merge.plan.plan import Plan, PlannedTensor

Weights = Mapping[str, Tensor] | torch.nn.Module
"""A state dict, or a module that has one."""
Live = TypeVar("Live", bound=torch.nn.Module)


def merge_state_dicts(
    base: Weights, finetuned: Weights | Sequence[Weights], recipe: Recipe | None = None,
    options: MergeOptions | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Merge loaded models into a new state dict; tensors that the owner ties are one tensor in it, too.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        recipe: what is mixed; by default everything with Speech-FT's alpha of 0.25.
        options: only `allow_unrelated` and `allow_partial` matter.

    Returns:
        New tensors, each on the device of the base's, or of the fine-tune's that is taken.

    Raises:
        CheckpointError: a tensor cannot be read, or is not finite.
        MismatchError, UsageError: see `plan.decision.decide`.

    Example:
        >>> from safetensors.torch import load_file
        >>> from speechft_merge import merge_state_dicts
        >>> pair = [load_file(f"examples/pair/{side}/model.safetensors") for side in ("base", "finetuned")]
        >>> len(merge_state_dicts(*pair))
        115
    """
    _, plan = _decide(base, finetuned, or_default(recipe, Recipe, "recipe"), options)
    made: dict[tuple[Operation, torch.dtype], Tensor] = {}
    merged = {}
    with torch.no_grad():
        for tensor in plan.tensors:
            segment = tensor.at(0)
            key = segment.operation, torch_type(tensor.dtype)
            if key not in made:
                made[key] = _make(segment).reshape(tensor.shape)
            merged[tensor.name] = made[key]
    return merged


def interpolate_(module: Live, base: Weights, finetuned: Weights | Sequence[Weights], alpha: float) -> Live:
    """Write the merge of two loaded models into a live module, and return it; see `LiveMerge`, which does it again.

    Args:
        module: of the class of the base or of the fine-tune; it may be either.
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        alpha: weight of the fine-tune.

    Raises:
        UsageError: the module has the names of neither, or alpha is no number from 0 to 1.
        CheckpointError, MismatchError: as `merge_state_dicts`.

    Example:
        >>> import torch
        >>> from speechft_merge import interpolate_
        >>> module, base, finetuned = (torch.nn.Linear(2, 2) for _ in range(3))
        >>> torch.equal(interpolate_(module, base, finetuned, alpha=0.0).weight, base.weight)
        True
    """
    LiveMerge(module, base, finetuned).set(alpha)
    return module


class LiveMerge:
    """A live module whose weights are the merge of loaded models, at one alpha after the other.

    Nothing is read again for another alpha: base and fine-tunes stay on the module's device, beside the module. The
    module has the owner's class: its names are those of the base, or of the fine-tune, whose head it then keeps.

    Args:
        module: what is run; its weights are overwritten, in its own element types.
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        weight: of each fine-tune in their mean; empty: equal.
        options: only `allow_unrelated` and `allow_partial` matter.

    Raises:
        UsageError: the module has the names of neither.
        CheckpointError, MismatchError: as `merge_state_dicts`.

    Example:
        >>> import torch
        >>> from speechft_merge import LiveMerge
        >>> module, base, finetuned = (torch.nn.Linear(2, 2) for _ in range(3))
        >>> live = LiveMerge(module, base, finetuned)
        >>> live.set(1.0)
        >>> torch.equal(module.weight, finetuned.weight)
        True
    """

    def __repr__(self) -> str:
        return f"<LiveMerge of {type(self._module).__name__}>"

    def __init__(
        self, module: torch.nn.Module, base: Weights, finetuned: Weights | Sequence[Weights],
        weight: Sequence[float] = (), options: MergeOptions | None = None,
    ) -> None:  # fmt: skip
        self._module = module
        targets, models = _state(module), [_state(base), *map(_state, _listed(finetuned))]
        keep_head = _shapes(targets) != _shapes(models[0])
        if _shapes(targets) != _shapes(models[keep_head]):
            odd = sorted(name for name, _ in _shapes(targets).items() ^ _shapes(models[0]).items())
            raise UsageError(
                f"the module has the tensors of neither model; {len(odd)} differ from the base's in name or shape, "
                f"first {odd[0]!r}",
                hint="give a module of the class of the base or of the fine-tune, unwrapped (model.module)",
            )
        apart = [_apart(model, targets) for model in models]
        self._recipe = Recipe(alpha=1.0, weight=tuple(weight), keep_head=keep_head)
        self._models, self._plan = _decide(apart[0], apart[1:], self._recipe, options)
        with torch.no_grad():
            _require_finite(
                {span.source.name: load_tensor(span) for tensor in self._plan.tensors for span in tensor.inputs}
            )
        self._replans = not all(map(_is_loaded, self._plan.tensors))
        """Whether some are computed, such as the two parts of a folded kernel: of what, depends on alpha."""

    def set(self, alpha: float, layer_alpha: Sequence[str] = ()) -> None:
        """Write the merge with this alpha into the module, as its tensors are now.

        Args:
            alpha: weight of the fine-tune, from 0 to 1.
            layer_alpha: rules for some layers or tensors, as `--layer-alpha` has them; later ones win.

        Raises:
            UsageError: alpha lies outside of [0, 1], or a rule matches nothing.
            MismatchError: a result does not fit the module's type; the module holds it all the same.
        """
        recipe = replace(self._recipe, alpha=alpha, layer_alpha=tuple(map(parse_rule, layer_alpha)))
        if layer_alpha or self._replans:
            planned = make_plan(self._models[0], self._models[1:], recipe).tensors
        else:
            planned = tuple(_with_alpha(tensor, recipe.alpha) for tensor in self._plan.tensors)
        targets = _state(self._module)
        with torch.no_grad():
            for tensor in planned:
                write_into(targets[tensor.name], tensor.at(0).operation, load_tensor)
            _require_finite(targets)


def _with_alpha(tensor: PlannedTensor, alpha: float) -> PlannedTensor:
    """Return an interpolated tensor with another alpha, as the plan would have it."""
    operation = tensor.operation
    if not isinstance(operation, Interpolate):
        return tensor
    mixed = Copy(operation.base) if alpha == 0 else operation._replace(alpha=alpha)
    return replace(tensor, operation=mixed)


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise MismatchError if a number is not finite; what a GPU finds is fetched at once."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    flags = [tensor.isfinite().all() for tensor in floats.values()]
    if flags and not torch.stack([flag.to(flags[0].device) for flag in flags]).all():
        name = next(name for name, flag in zip(floats, flags, strict=True) if not flag)
        raise MismatchError(
            f"{name} holds numbers that are not finite",
            hint="a model with such weights is broken; of a merge, they do not fit the module's type",
        )


def _state(model: Weights) -> Mapping[str, Tensor]:
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(state, Mapping):
        raise UsageError(f"a model is given as {type(model).__name__}", hint="give a module or its state dict")
    return state


def _listed(finetuned: Weights | Sequence[Weights]) -> Sequence[Weights]:
    listed: list[Any] = [*finetuned] if isinstance(finetuned, (list, tuple)) else [finetuned]
    if not listed:
        raise UsageError("a fine-tuned model is missing", hint="give one or more fine-tunes of the base")
    return listed


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _apart(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a state dict on the targets' device, of which no tensor lies in a storage of theirs; ties are kept."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in targets.values()}
    copies: dict[object, Tensor] = {}
    found = {}
    for name, tensor in state.items():
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        if tensor.untyped_storage().data_ptr() in taken:
            copies.setdefault(key, tensor.detach().clone())
        elif name in targets and tensor.device != targets[name].device:
            copies.setdefault(key, tensor.detach().to(targets[name].device))
        found[name] = copies.get(key, tensor)
    return found


def _decide(
    base: Weights, finetuned: Weights | Sequence[Weights], recipe: Recipe, options: MergeOptions | None
) -> tuple[Sequence[Checkpoint], Plan]:
    options = options or MergeOptions()
    listed = _listed(finetuned)
    names = ["the fine-tune"] if len(listed) == 1 else [f"fine-tune {number}" for number in range(1, len(listed) + 1)]
    models = [index_tensors("the base", _state(base))]
    models += [index_tensors(name, _state(model)) for name, model in zip(names, listed, strict=True)]
    chosen, known = prepare_models(models[0], models[1:], recipe)
    decision = decide(chosen, known, recipe, options.allowed)
    for told in texts(decision.findings, Level.WARNING):
        warnings.warn(told, stacklevel=4)
    return chosen, decision.plan


def _is_loaded(tensor: PlannedTensor) -> bool:
    """Return whether a tensor is made of whole tensors of the models."""
    return all(isinstance(span.source, TensorSource) for span in tensor.inputs)


def _make(segment: Segment) -> Tensor:
    """Return what a planned tensor becomes, in new memory: of the shape of its first input."""
    first = segment.operation.inputs[0]
    out = torch.empty(first.shape, dtype=torch_type(segment.dtype), device=device_of(first))
    write_into(out, segment.operation, load_tensor)
    if segment.dtype.interpolated and not out.isfinite().all():
        require_finite(segment, 0, segment.elements, out.reshape(-1).view(torch.uint8).cpu().numpy())
    return out
