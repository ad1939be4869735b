"""Decides when to retry a request, and after how long."""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes that are worth a retry."""
TRIES = 6
"""Failures in a row after which a request is abandoned."""
LONGEST_WAIT = 60.0
"""Most seconds for which a server's Retry-After is honoured."""


def pause(tries: int, seconds: float | None = None) -> None:
    """Wait after `tries` (at least 1) failures in a row; as long as the server asked, if it did."""
    if seconds is not None:
        time.sleep(min(seconds, LONGEST_WAIT))
    else:
        time.sleep(min(8.0, 0.5 * 2 ** (tries - 1)) * random.uniform(0.5, 1.0))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait by the Hub's RateLimit header (`"api";r=0;t=37`) or by Retry-After."""
    limit = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    if limit and re.search(r"\br=0\b", headers.get("RateLimit", "")):
        return float(limit[1]) + 1
    after = headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None
