"""Renames weight norm: two spellings of the same two tensors, one of which is canonical."""

from __future__ import annotations

import re

_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original([01])$")


def canonical(name: str) -> str:
    """Return the name with weight norm written the old way: `weight_g`, `weight_v`.

    transformers 4.46 writes `parametrizations.weight.original0` and `original1` for the same two tensors, 5.x writes
    either, after what it loaded (transformers issues 26796, 33995).
    """
    return _PARAMETRIZED.sub(lambda found: f"{found[1]}_{'gv'[int(found[2])]}", name)
