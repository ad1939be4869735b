"""Holds every request of the Hub's client to one policy, which bounds silence, slowness and waits asked for."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
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
LONGEST_ANSWER = 16 << 20
"""Bytes of an answer that is read whole, unpacked: lists of files, never the files."""
MOST_OBJECTS = 100_000
"""Objects in such an answer, each of which takes a hundred times its text: the Hub's own bound for files."""


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
    response.iter_raw = functools.partial(_steadily, response.iter_raw, response)
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


def _steadily(chunks: Callable[..., Iterator[bytes]], response: Any, *args: Any) -> Iterator[bytes]:
    """Yield the pieces of an answer as they come; raise ReadTimeout if they come too slowly, or a piece without end."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    pieces, watch = chunks(*args), _Watch(response)
    waited, received = 0.0, 0
    try:
        while True:
            try:
                seconds, piece = watch.time(lambda: next(pieces, None))
            except httpx.TransportError as error:
                if not watch.fired:
                    raise
                raise httpx.ReadTimeout(f"no piece within {WINDOW:g} s", request=response.request) from error
            if piece is None:
                return
            waited, received = waited + seconds, received + len(piece)
            if waited > WINDOW:
                if received < LEAST_RATE * waited:
                    raise httpx.ReadTimeout(f"{received} bytes in {waited:.0f} s", request=response.request)
                waited, received = 0.0, 0
            yield piece
    finally:
        watch.stop()


class _Watch:
    """Shuts a connection down on which one read takes longer than `WINDOW`: each byte of it may be in time."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._since: float | None = None
        self._ended = threading.Event()
        self.fired = False
        threading.Thread(target=self._work, daemon=True).start()

    def time(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds that a call took, and its result."""
        started = self._since = time.monotonic()
        try:
            result = call()
        finally:
            self._since = None
        return time.monotonic() - started, result

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.wait(min(1.0, WINDOW / 2)):
            since = self._since
            if since is not None and time.monotonic() - since > WINDOW:
                self.fired = True
                stream = self._response.extensions.get("network_stream")
                connection = stream.get_extra_info("socket") if stream is not None else None
                with contextlib.suppress(OSError):
                    if connection is not None:
                        connection.shutdown(socket.SHUT_RDWR)
                return


def _bounded(chunks: Callable[..., Iterator[bytes]], request: Any, *args: Any) -> Iterator[bytes]:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    received = objects = 0
    for piece in chunks(*args):
        received, objects = received + len(piece), objects + piece.count(b"{")
        if received > LONGEST_ANSWER or objects > MOST_OBJECTS:
            raise httpx.DecodingError(f"an answer of more than {received} bytes, {objects} objects", request=request)
        yield piece
