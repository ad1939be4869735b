"""What was asked and what was answered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Entry:
    """A request; `sent` and `received` are bytes of bodies. The status is 0 until the answer begins."""

    method: str
    path: str  # as sent, escapes and all
    query: str
    host: str
    range: str | None
    token: bool
    spoiled: bool = False  # a fault was applied
    status: int = 0
    sent: int = 0
    received: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"
