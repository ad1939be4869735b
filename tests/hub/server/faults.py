"""Faults on demand: the answers that a bad network and a busy Hub give."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .journal import Entry

WRONG_RANGES = ("whole", "shifted", "short")


@dataclass
class Fault:
    """What to do to the requests whose "METHOD path" the expression `match` is found in."""

    match: str
    times: int = 1
    skip: int = 0  # so many requests pass first
    sleep: float = 0  # seconds before the request is looked at
    hold: bool = False  # it is not looked at before `Faults.release`
    # an answer instead of the true one; if late, the request is carried out nevertheless
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": "injected"}'
    late: bool = False
    # spoilt bodies; positions are offsets in what is sent
    drop_after: int | None = None  # close the connection
    stall_after: int | None = None  # be silent for `stall` seconds, then go on
    stall: float = 0
    corrupt: int | None = None  # flip the bits of this byte
    wrong_range: str | None = None  # answer as if another range had been asked for: one of WRONG_RANGES

    def __post_init__(self) -> None:
        re.compile(self.match)
        if self.wrong_range not in (None, *WRONG_RANGES):
            raise ValueError(f"wrong_range is one of {WRONG_RANGES}")

    @property
    def answer(self) -> Response | None:
        return None if self.status is None else Response(self.body, self.status, self.headers)


class Faults:
    """Those in wait, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._gate = asyncio.Event()

    def add(self, fault: Fault) -> None:
        self._waiting.append(fault)

    def clear(self) -> None:
        self._waiting.clear()
        self.release()

    def release(self) -> None:
        """Let go of the requests that are held, but not of later ones."""
        self._gate.set()
        self._gate = asyncio.Event()

    async def delay(self, fault: Fault) -> None:
        """Wait before a request is looked at."""
        await asyncio.sleep(fault.sleep)
        if fault.hold:
            await self._gate.wait()

    def take(self, entry: Entry) -> Fault:
        """The first fault that has its turn at this request; one that does nothing if there is none."""
        for fault in self._waiting:
            if fault.times and re.search(fault.match, str(entry)):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                entry.spoiled = True
                return fault
        return Fault("")


class DroppedError(Exception):
    """The connection is to be closed in the middle of an answer."""


class Wire:
    """The connection to a client: counts what passes, and spoils it."""

    def __init__(self, receive: Receive, send: Send, entry: Entry, fault: Fault) -> None:
        self._receive, self._send = receive, send
        self._entry, self._fault = entry, fault
        self._stalled = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._entry.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._entry.status = message["status"]
            await self._send(message)
            return
        fault, sent, body = self._fault, self._entry.sent, bytes(message.get("body", b""))
        if fault.corrupt is not None and sent <= fault.corrupt < sent + len(body):
            body = _flipped(body, fault.corrupt - sent)
        if fault.drop_after is not None and fault.drop_after < sent + len(body):
            await self._pass(body[: fault.drop_after - sent], more=True)
            raise DroppedError
        if fault.stall_after is not None and not self._stalled and fault.stall_after < sent + len(body):
            self._stalled = True
            before = fault.stall_after - sent
            await self._pass(body[:before], more=True)
            await asyncio.sleep(fault.stall)
            body = body[before:]
        await self._pass(body, message.get("more_body", False))

    async def _pass(self, body: bytes, more: bool) -> None:
        self._entry.sent += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def misread(scope: Scope, how: str) -> Scope:
    """The request with another Range: none, one byte later, or half as long."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    asked = dict(scope["headers"]).get(b"range", b"").decode()
    if (match := re.fullmatch(r"bytes=(\d+)-(\d+)", asked)) and how != "whole":
        start, last = int(match[1]), int(match[2])
        start, last = (start + 1, last + 1) if how == "shifted" else (start, (start + last) // 2)
        headers.append((b"range", f"bytes={start}-{last}".encode()))
    return {**scope, "headers": headers}


def _flipped(body: bytes, position: int) -> bytes:
    return body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]
