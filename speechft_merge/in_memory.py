"""Merges models that are loaded, on a CPU or a GPU: by the same plan, to the same bytes as from files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from speechft_merge.checkpoints.memory import TensorSource, index_tensors
from speechft_merge.errors import MismatchError, UsageError
from speechft_merge.executor.arithmetic import add_share, choose_side, mix
from speechft_merge.executor.device_buffers import narrow, torch_type
from speechft_merge.executor.finite import is_finite, require_finite
from speechft_merge.options import MergeOptions
from speechft_merge.plan.decision import decide
from speechft_merge.plan.encoders import choose_encoders
from speechft_merge.plan.findings import Level, texts
from speechft_merge.plan.operations import Copy, Interpolate
from speechft_merge.plan.plan import make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from speechft_merge.checkpoints.index import Checkpoint, TensorSpan
    from speechft_merge.plan.operations import Operation, Segment
    from speechft_merge.plan.plan import Plan

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
    _, plan = _decide(base, finetuned, recipe or Recipe(), options)
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

    def __init__(
        self, module: torch.nn.Module, base: Weights, finetuned: Weights | Sequence[Weights],
        weight: Sequence[float] = (), options: MergeOptions | None = None,
    ) -> None:  # fmt: skip
        targets = _state(module)
        firsts = [_state(model) for model in (base, _listed(finetuned)[0])]
        keep_head = targets.keys() != firsts[0].keys()
        if targets.keys() != firsts[keep_head].keys():
            odd = sorted(targets.keys() ^ firsts[0].keys())
            raise UsageError(
                f"the module has the names of neither model; {len(odd)} differ from the base's, first {odd[0]!r}",
                hint="give a module of the class of the base or of the fine-tune",
            )
        own = {tensor.untyped_storage().data_ptr() for tensor in targets.values()}
        apart = [_apart(model, own) for model in (base, *_listed(finetuned))]
        self._recipe = Recipe(alpha=1.0, weight=tuple(weight), keep_head=keep_head)
        self._models, plan = _decide(apart[0], apart[1:], self._recipe, options)
        self._mixed: dict[str, _LiveTensor] = {}
        with torch.no_grad():
            for tensor in plan.tensors:
                target = targets[tensor.name]
                if isinstance(tensor.operation, Interpolate):
                    self._mixed[tensor.name] = _LiveTensor.of(tensor.operation, target)
                else:
                    target.copy_(_make(tensor.at(0)).reshape(target.shape))

    def set(self, alpha: float, layer_alpha: Sequence[str] = ()) -> None:
        """Write the merge with this alpha into the module.

        Args:
            alpha: weight of the fine-tune, from 0 to 1.
            layer_alpha: rules for some layers or tensors, as `--layer-alpha` has them; later ones win.

        Raises:
            UsageError: alpha lies outside of [0, 1], or a rule matches nothing.
        """
        recipe = replace(self._recipe, alpha=alpha, layer_alpha=tuple(map(parse_rule, layer_alpha)))
        alphas: Mapping[str, float | None] = dict.fromkeys(self._mixed, recipe.alpha)
        if layer_alpha:
            alphas = {
                tensor.name: tensor.alpha for tensor in make_plan(self._models[0], self._models[1:], recipe).tensors
            }
        with torch.no_grad():
            for name, mixed in self._mixed.items():
                mixed.set(alphas[name] or 0.0)


@dataclass(frozen=True, slots=True)
class _LiveTensor:
    """A tensor of a live module, and what it is mixed of: on its device, in their own element types."""

    target: Tensor
    base: Tensor
    finetuned: tuple[Tensor, ...]
    operation: Interpolate

    @classmethod
    def of(cls, operation: Interpolate, target: Tensor) -> _LiveTensor:
        base, *finetuned = (_load(span, target.device).reshape(target.shape) for span in operation.inputs)
        for span, tensor in zip(operation.inputs, (base, *finetuned), strict=True):
            if not tensor.isfinite().all():
                raise MismatchError(f"{span.source.name} holds numbers that are not finite, and would break the merge")
        return cls(target, base, tuple(finetuned), operation)

    def set(self, alpha: float) -> None:
        """Write the mix; without other memory where all is of one type, which saves half of the time, too."""
        inputs = (self.base, *self.finetuned)
        types, real = {tensor.dtype for tensor in inputs}, _real(inputs)
        if alpha == 0:
            narrow(self.base, self.target)
        elif len(inputs) == 2 and self.operation.terms[0].weight == 1 and types == {real} == {self.target.dtype}:
            from_finetuned, factor = choose_side([1.0], alpha)
            start, other = (self.finetuned[0], self.base) if from_finetuned else inputs
            torch.subtract(start, other, out=self.target)
            add_share(torch, start, self.target, factor, self.target)
        else:
            numbers = [tensor.to(real, copy=True).reshape(-1) for tensor in inputs]
            values, _ = mix(torch, self.operation._replace(alpha=alpha), numbers)
            narrow(values.reshape(self.target.shape), self.target)


def _state(model: Weights) -> Mapping[str, Tensor]:
    return model.state_dict() if isinstance(model, torch.nn.Module) else model


def _listed(finetuned: Weights | Sequence[Weights]) -> Sequence[Weights]:
    listed = [finetuned] if isinstance(finetuned, (Mapping, torch.nn.Module)) else [*finetuned]
    if not listed:
        raise UsageError("a fine-tuned model is missing", hint="give one or more fine-tunes of the base")
    return listed


def _apart(model: Weights, taken: set[int]) -> Mapping[str, Tensor]:
    """Return a state dict of which no tensor lies in a storage that is written to; ties are kept."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    found = {}
    for name, tensor in _state(model).items():
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = copies.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().clone())
        found[name] = tensor
    return found


def _decide(
    base: Weights, finetuned: Weights | Sequence[Weights], recipe: Recipe, options: MergeOptions | None
) -> tuple[Sequence[Checkpoint], Plan]:
    options = options or MergeOptions()
    listed = _listed(finetuned)
    names = ["the fine-tune"] if len(listed) == 1 else [f"fine-tune {number}" for number in range(1, len(listed) + 1)]
    models = [index_tensors("the base", _state(base))]
    models += [index_tensors(name, _state(model)) for name, model in zip(names, listed, strict=True)]
    chosen, known = choose_encoders(models[0], models[1:])
    decision = decide(chosen, known, recipe, options.allowed)
    for told in texts(decision.findings, Level.WARNING):
        warnings.warn(told, stacklevel=4)
    return chosen, decision.plan


def _load(span: TensorSpan, device: torch.device) -> Tensor:
    """Return a planned input on a device: the very tensor, or what is computed of several, such as a folded kernel."""
    source = span.source
    if isinstance(source, TensorSource) and (span.offset, span.nbytes) == (0, source.size):
        return source.tensor.to(device)
    raw = torch.frombuffer(bytearray(source.read(span.offset, span.nbytes)), dtype=torch_type(span.dtype))
    return raw.reshape(span.shape).to(device)


def _device(span: TensorSpan) -> torch.device:
    source = span.source
    while not isinstance(source, TensorSource) and source.parts:
        source = source.parts[0]
    return source.tensor.device if isinstance(source, TensorSource) else torch.device("cpu")


def _make(segment: Segment) -> Tensor:
    """Return the elements of a planned tensor: (n,), in new memory."""
    operation, dtype = segment.operation, torch_type(segment.dtype)
    device = _device(operation.inputs[0])
    inputs = [_load(span, device) for span in operation.inputs]
    out = torch.empty(segment.elements, dtype=dtype, device=device)
    if isinstance(operation, Copy):
        narrow(inputs[0].reshape(-1), out)
        finite = not segment.dtype.interpolated or bool(out.isfinite().all())
    else:
        values, drift = mix(torch, operation, [tensor.to(_real(inputs), copy=True).reshape(-1) for tensor in inputs])
        narrow(values, out)
        finite = not segment.elements or is_finite(operation, segment.dtype, values, drift)
    if not finite:
        require_finite(segment, 0, segment.elements, out.view(torch.uint8).cpu().numpy())
    return out


def _real(inputs: Sequence[Tensor]) -> torch.dtype:
    """Return the type of the arithmetic."""
    return torch.float64 if any(tensor.dtype is torch.float64 for tensor in inputs) else torch.float32
