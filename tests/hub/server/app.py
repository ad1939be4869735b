"""The ASGI application: every request is written down, and some are spoilt."""

from __future__ import annotations

import asyncio
import contextlib
import traceback

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from . import api, commits, transfer
from .controls import PREFIX, Controls
from .errors import HubError
from .faults import DroppedError, Wire, misread
from .hub import Hub
from .journal import Entry
from .routing import Routes


class App:
    """A Hub under control of the tests."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._controls = Controls(hub)
        self._routes = Routes()
        for module in (api, commits, transfer):
            self._routes.join(module.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode()
        if path.startswith(PREFIX):
            await (await self._answer(Request(scope, receive), path))(scope, receive, send)
            return
        # after an answer that is not complete uvicorn closes the connection
        with contextlib.suppress(ClientDisconnect, DroppedError):
            await self._observed(scope, receive, send, path)

    async def _observed(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        entry = _entry(Request(scope), path)
        self._controls.journal.append(entry)
        fault = self._controls.faults.take(entry)
        wire = Wire(receive, send, entry, fault)
        await asyncio.sleep(self._controls.latency)
        await self._controls.faults.delay(fault)
        if fault.wrong_range:
            scope = misread(scope, fault.wrong_range)
        response = fault.answer
        if response is None or fault.late:
            true_response = await self._answer(Request(scope, wire.receive), path)
            response = response or true_response
        await response(scope, wire.receive, wire.send)

    async def _answer(self, request: Request, path: str) -> Response:
        try:
            if path.startswith(PREFIX):
                return await self._controls.answer(request, path)
            return await self._routes.answer(self._hub, request, path)
        except HubError as error:
            return error.response
        except ClientDisconnect:
            raise
        except Exception:
            traceback.print_exc()
            return JSONResponse({"error": "the test server is broken"}, 500)


def _entry(request: Request, path: str) -> Entry:
    headers = request.headers
    return Entry(
        method=request.method,
        path=path,
        query=request.url.query,
        host=headers.get("host", ""),
        range=headers.get("range"),
        token="authorization" in headers,
    )
