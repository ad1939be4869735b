"""An oracle that shares nothing with the product: an interpolation in float64, and how far a merge may be from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

Tensors = dict[str, torch.Tensor]


def mixed(base: torch.Tensor, finetuned: torch.Tensor) -> torch.Tensor:
    """A quarter of the way to the fine-tune; the base itself where it holds no fractions."""
    return base.double() + 0.25 * (finetuned.double() - base.double()) if base.is_floating_point() else base.double()


def interpolate(base: Mapping[str, torch.Tensor], finetuned: Mapping[str, torch.Tensor]) -> Tensors:
    """Names and what has no counterpart are the base's."""
    return {name: mixed(tensor, finetuned.get(name, tensor)) for name, tensor in base.items()}


def rounded(weights: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> Tensors:
    """In the element types that a model has."""
    return {name: tensor.to(like[name].dtype) for name, tensor in weights.items()}


def differences(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Name -> by how many steps of float32 the worst element is off, of tensors that are off by more than rounding."""
    assert found.keys() == wanted.keys()
    off = {}
    for name, exact in wanted.items():
        assert found[name].shape == exact.shape, name
        step = max(float(exact.abs().max()) * 2**-23, 2**-126) if found[name].is_floating_point() else 1
        distance = float((found[name].double() - exact).abs().max()) / step
        if distance > 1:
            off[name] = distance
    return off


def moved(weights: Mapping[str, torch.Tensor], seed: int = 1) -> Tensors:
    """A fine-tune: each weight a little off, also one that was 0."""
    torch.manual_seed(seed)
    return {name: shaken(tensor) if tensor.is_floating_point() else tensor.clone() for name, tensor in weights.items()}


def shaken(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * (1 + 0.05 * torch.randn_like(tensor)) + 0.002 * torch.randn_like(tensor)
