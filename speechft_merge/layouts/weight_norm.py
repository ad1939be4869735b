"""Renames weight norm: two spellings of the same two tensors, one of which is canonical, and the kernel they make."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original([01])$")


class WeightNorm(NamedTuple):
    """Own names of a kernel's norm and direction, and what the kernel is called beside them."""

    g: str
    v: str
    kernel: str


def canonical(name: str) -> str:
    """Return the name with weight norm written the old way: `weight_g`, `weight_v`.

    transformers 4.46 writes `parametrizations.weight.original0` and `original1` for the same two tensors, 5.x writes
    either, after what it loaded (transformers issues 26796, 33995).
    """
    return _PARAMETRIZED.sub(lambda found: f"{found[1]}_{'gv'[int(found[2])]}", name)


def find_weight_norms(names: Mapping[str, str]) -> dict[str, WeightNorm]:
    """Return canonical name of each kernel that is in two parts -> the parts.

    Args:
        names: own -> canonical names.
    """
    own = {name: key for key, name in names.items()}
    return {
        name[:-2]: WeightNorm(own[name], own[f"{name[:-2]}_v"], canonical(own[name])[:-2])
        for name in own
        if name.endswith("_g") and f"{name[:-2]}_v" in own
    }
