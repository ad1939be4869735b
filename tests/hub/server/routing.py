"""Which handler answers which request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from .errors import HubError
from .hub import Hub

Handler = Callable[..., Awaitable[Response]]  # of the hub, the request and the parts of its path by name
F = TypeVar("F", bound=Handler)

PARTS = {"repo": "[^/]+/[^/]+", "rev": r"refs/pr/\d+|[^/]+", "path": ".+"}


class Routes:
    """Templates of raw paths: the client escapes the slashes of `refs/pr/1`, which must stay one part until here."""

    def __init__(self) -> None:
        self._table: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, methods: str, template: str) -> Callable[[F], F]:
        pattern = re.compile(re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{PARTS.get(m[1], '[^/]+')})", template))

        def decorator(handler: F) -> F:
            self._table.extend((method, pattern, handler) for method in methods.split())
            return handler

        return decorator

    def join(self, other: Routes) -> None:
        self._table += other._table

    async def answer(self, hub: Hub, request: Request, raw_path: str) -> Response:
        known = False
        for method, pattern, handler in self._table:
            if match := pattern.fullmatch(raw_path):
                known = True
                if method == request.method:
                    parts = {name: unquote(part) for name, part in match.groupdict().items()}
                    return await handler(hub, request, **parts)
        raise HubError(405 if known else 404, "Sorry, we can't find the page you are looking for.")
