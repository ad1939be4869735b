"""Reads sizes as people write them: `500MB`, `2GiB`."""

from __future__ import annotations

import re

from speechft_merge.errors import UsageError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Return the bytes of `500MB`, `5GB`, `2GiB` (units as huggingface_hub has them: MB is 10^6 bytes).

    Raises:
        UsageError: not a size, or none at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS or (size := int(float(found[1]) * _UNITS[found[2].upper()])) <= 0:
        raise UsageError(f"{text!r} is not a size", hint="give a number with a unit, such as 500MB or 5GB")
    return size
