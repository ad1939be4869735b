"""Decides when to retry a request, and after how long."""

from __future__ import annotations

import math
import os
import random
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes that are worth a retry."""
REFUSED = frozenset({425, 429, 503})
"""Those with which a server says that it did nothing."""
_NO_ANSWER = 0
TRIES = 6
"""Failures in a row after which a request is abandoned."""
FIRST_TRIES = 4
"""The same of a call to the Hub's client, which tries most requests itself."""
LONGEST_WAIT = 60.0
"""Most seconds for which a server's Retry-After is honoured, unless the environment says otherwise."""
VARIABLE = "SPEECHFT_MERGE_LONGEST_WAIT"
"""Environment variable: other seconds in place of `LONGEST_WAIT`."""

_Result = TypeVar("_Result")


def longest_wait() -> float:
    """Return the most seconds for which a server's Retry-After is honoured."""
    try:
        seconds = float(os.environ.get(VARIABLE, LONGEST_WAIT))
    except ValueError:
        return LONGEST_WAIT
    return seconds if 0 <= seconds < math.inf else LONGEST_WAIT


def pause(tries: int, seconds: float | None = None) -> None:
    """Wait after `tries` (at least 1) failures in a row; as long as the server asked, if it did."""
    if seconds is not None:
        time.sleep(min(seconds, longest_wait()))
    else:
        time.sleep(min(8.0, 0.5 * 2 ** (tries - 1)) * random.uniform(0.5, 1.0))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait by the Hub's RateLimit header (`"api";r=0;t=37`) or by Retry-After."""
    limit = re.search(r"\bt=([0-9]{1,9})\b", headers.get("RateLimit", ""))
    if limit and re.search(r"\br=0\b", headers.get("RateLimit", "")):
        return float(limit[1]) + 1
    after = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", after):
        return float(after[:9])
    from email.utils import parsedate_to_datetime  # takes longer than all else in here, and is rarely asked for

    try:
        return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # not a date; or one without its zone
        return None


def persist(call: Callable[[], _Result], *, also: Collection[int] = (), only: Collection[int] | None = None) -> _Result:
    """Return what a call to the Hub's client returns, called again after failures that may pass.

    Args:
        call: of no further effect if it is carried out twice.
        also: further status codes that are worth a retry.
        only: where a second call would have an effect, the status codes that tell that the first had none.
    """
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            status, headers = _answer(error)
            worth = status in only if only is not None else status in {*RETRIED, *also, _NO_ANSWER}
            if not worth or failures == FIRST_TRIES:
                raise
        pause(failures, retry_after(headers))


def _answer(error: BaseException) -> tuple[int | None, Mapping[str, str]]:
    """Return status and headers of the answer that the client made an exception of; None if it is no such thing."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # an upload that failed
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code, error.response.headers
    passing = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ConnectError)  # no server at all
    return (_NO_ANSWER if passing else None), {}
