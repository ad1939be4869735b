"""Reads ranges of one file over HTTP: resolves it once, then reads its signed URL, resuming at the byte reached."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import QUOTED, CheckpointError, TemporaryError
from speechft_merge.sources.client import bound_client
from speechft_merge.sources.hub_errors import HubError, hub_errors
from speechft_merge.sources.redaction import redacted
from speechft_merge.sources.retries import RETRIED, TRIES, pause, retry_after
from speechft_merge.sources.token import authorization

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_FAILURES = 40
"""Failures of one range in total: a connection that breaks every few bytes must end, too."""


class _Again(Exception):  # noqa: N818  (not an error: what to do next)
    """The request failed in a way that may pass; wait so many seconds first."""

    def __init__(self, reason: str, seconds: float | None = None, expired: bool = False) -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.expired = expired


class Download:
    """Access to a file's bytes. Threads may call `fetch` at once; one resolves the URL, the others use its answer."""

    def __init__(self, repo: str, path: str, commit: str, size: int, etag: str, small: bool = False) -> None:
        from huggingface_hub import hf_hub_url

        self._repo, self._size, self._etag = repo, size, etag
        self._url = hf_hub_url(repo, path, revision=commit)
        self._what = f"{repo}@{commit[:8]}/{path}"
        self._lock = threading.Lock()
        self._answered: str | None = None
        self._location = self._url if small else None  # the Hub serves small files itself: one request instead of two

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that start at `offset`.

        Raises:
            TemporaryError: the server or the network failed too often, or the file changed.
            CheckpointError: the server sent something other than what was requested.
            HubError, NotFoundError: the Hub refuses.
        """
        done = tries = failures = 0
        while done < len(buffer):
            location = self._resolve(None)
            before = done
            try:
                for data in self._stream(location, offset + done, offset + len(buffer)):
                    if done + len(data) > len(buffer):
                        raise CheckpointError(f"{self._what}: the server sent more bytes than were requested")
                    buffer[done : done + len(data)] = data
                    done += len(data)
                if done < len(buffer):
                    raise _Again("the response ended early")
            except _Again as again:
                failures += 1
                tries = 1 if done > before else tries + 1
                if tries >= TRIES or failures >= MOST_FAILURES:
                    raise TemporaryError(
                        f"{self._what}: {again}; gave up after {failures} failures", hint="try again later"
                    ) from again
                if again.expired:
                    self._resolve(location)
                if not (again.expired and tries == 1):
                    pause(tries, again.seconds)

    def _resolve(self, stale: str | None) -> str:
        """Return the URL to read from; a new one if it is still the stale one."""
        from huggingface_hub import get_hf_file_metadata

        with self._lock:
            if self._location is not None and self._location != stale:
                return self._location
            bound_client()
            with hub_errors(self._repo):
                metadata = get_hf_file_metadata(self._url, retry_on_errors=True)
            if metadata.size != self._size or (metadata.etag or self._etag) != self._etag:
                raise HubError(f"{self._what} is not the file that the Hub listed a moment ago", hint="run again")
            self._location = metadata.location
            return self._location

    def _stream(self, location: str, start: int, stop: int) -> Any:
        """Yield the bytes of one request as they arrive."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

        headers = authorization(location) | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream("GET", location, headers=headers, timeout=timeout) as response:
                self._check(response.status_code, response.headers, start, stop)
                yield from response.iter_raw()
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # also a loop of redirects
            raise _Again(redacted(f"{type(error).__name__}: {error}")) from error

    def _check(self, status: int, headers: Mapping[str, str], start: int, stop: int) -> None:
        if status in RETRIED:
            raise _Again(f"HTTP {status}", retry_after(headers))
        if status in (400, 401, 403, 404, 410):
            raise _Again(f"HTTP {status} (a signed URL that expired?)", expired=True)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise CheckpointError(
                f"{self._what}: the server sent it packed (Content-Encoding: {headers['Content-Encoding'][:QUOTED]}), "
                "which was not asked for"
            )
        expected = f"bytes {start}-{stop - 1}/{self._size}"
        whole = status == 200 and start == 0 and stop == self._size and headers.get("Content-Range") is None
        if not whole and (status != 206 or headers.get("Content-Range") != expected):
            raise CheckpointError(
                f"{self._what}: requested {expected}, the server answered HTTP {status} "
                f"{headers.get('Content-Range', 'without Content-Range')[:QUOTED]}"
            )
        self._require_unchanged(headers.get("ETag"))

    def _require_unchanged(self, etag: str | None) -> None:
        """Compare the ETags of all answers; they need not be the Hub's checksum, which a CDN may not know."""
        if etag is None:
            return
        etag = etag.removeprefix("W/").strip('"')
        with self._lock:
            self._answered = self._answered or etag
        if etag != self._answered:
            raise TemporaryError(f"{self._what} changed while it was read", hint="run again")
