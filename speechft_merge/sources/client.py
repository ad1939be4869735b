"""Holds every request of the Hub's client to one policy, which bounds silence, slowness and waits asked for."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from speechft_merge.background import wait_for
from speechft_merge.errors import UsageError
from speechft_merge.sources.retries import longest_wait, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SILENCE = 300.0
"""Seconds without a byte after which a request ends for which the client sets no bound: a commit may take minutes."""
WINDOW = 60.0
"""Seconds over which an answer must come at `LEAST_RATE`, and within which its headers must be there."""
LEAST_RATE = 1000
"""Bytes a second."""
LONGEST_ANSWER = 64 << 20
"""Bytes of an answer that is read whole, unpacked: lists of files, never the files."""


def bound_client() -> None:
    """Hold huggingface_hub's client to the policy, also where it is made anew after an error.

    Call this before anything else of it: its import looks at HF_ENDPOINT.

    Raises:
        UsageError: HF_ENDPOINT is no URL.
    """
    try:
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils import _http  # the factory in use, which may be the user's, has no public name
    except ValueError as error:
        raise UsageError(f"HF_ENDPOINT cannot be used: {error}", hint="correct it, or unset it") from error

    make: Any = _http._GLOBAL_CLIENT_FACTORY
    if not getattr(make, "bounded", False):

        def make_bounded() -> Any:
            client = make()
            client.send = functools.partial(_send, client.send)
            return client

        make_bounded.bounded = True  # type: ignore[attr-defined]
        set_client_factory(make_bounded)


def _send(send: Callable[..., Any], request: Any, *, stream: bool = False, **options: Any) -> Any:
    """Send a request, and return its answer with every wait in it bounded."""
    asked = request.extensions.get("timeout", {})
    seconds = {
        step: SILENCE if asked.get(step) is None else asked[step] for step in ("connect", "read", "write", "pool")
    }
    request.extensions = {**request.extensions, "timeout": seconds}
    call = functools.partial(send, request, stream=True, **options)
    response = _headers_in_time(call, request, seconds["read"])
    _limit_waits(response.headers)
    response.iter_raw = functools.partial(_steadily, response.iter_raw, request)
    if not stream:
        response.iter_bytes = functools.partial(_bounded, response.iter_bytes, request)
        try:
            response.read()
        except BaseException:
            response.close()
            raise
    return response


def _headers_in_time(call: Callable[[], Any], request: Any, silence: float) -> Any:
    """Return an answer once its headers are there: they may come a line a second, which no timeout of a read ends."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if request.method not in ("GET", "HEAD"):  # the answer to an upload begins when all is sent
        return call()
    try:
        return wait_for(call, max(WINDOW, 2 * silence))
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error), request=request) from error


def _limit_waits(headers: Any) -> None:
    """Rewrite what a server asks to wait, which the client does as it is told, however long and in whatever form."""
    seconds = retry_after(headers)
    for name in ("RateLimit", "Retry-After"):
        if name in headers:
            del headers[name]
    if seconds is not None:
        headers["Retry-After"] = str(int(min(seconds, longest_wait())))


def _steadily(chunks: Callable[..., Iterator[bytes]], request: Any, *args: Any) -> Iterator[bytes]:
    """Yield the pieces of an answer as they come; raise ReadTimeout if they come too slowly."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    pieces = chunks(*args)
    waited, received = 0.0, 0
    while True:
        started = time.monotonic()
        piece = next(pieces, None)
        waited += time.monotonic() - started
        if piece is None:
            return
        received += len(piece)
        if waited > WINDOW:
            if received < LEAST_RATE * waited:
                raise httpx.ReadTimeout(f"{received} bytes in {waited:.0f} s", request=request)
            waited, received = 0.0, 0
        yield piece


def _bounded(chunks: Callable[..., Iterator[bytes]], request: Any, *args: Any) -> Iterator[bytes]:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    received = 0
    for piece in chunks(*args):
        received += len(piece)
        if received > LONGEST_ANSWER:
            raise httpx.DecodingError(f"an answer of more than {LONGEST_ANSWER} bytes", request=request)
        yield piece
