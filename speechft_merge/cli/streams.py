"""Makes stderr a log that cannot fail, in which no secret appears; and puts something where a stream is closed."""

from __future__ import annotations

import io
import os
import sys

from speechft_merge.sources.redaction import redacted

ESCAPED = "backslashreplace"
"""What becomes of a letter that the terminal's encoding lacks: it must not end a merge."""


class _Forgiving(io.FileIO):
    """A file whose writes always succeed: a log on a full disk, or without a reader, changes nothing of a merge."""

    def write(self, data: object, /) -> int:
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except OSError:
            written = None
        return len(memoryview(data)) if written is None else written  # type: ignore[arg-type]


class _Log(io.TextIOWrapper):
    replaced: object
    """The stream before: with it, its descriptor would be closed."""

    def write(self, text: str, /) -> int:
        super().write(redacted(text))
        return len(text)


def prepare_streams() -> None:
    """Prepare the streams of this process; those that a caller put in their place stay as they are."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: a file opened later must not get its number, and with it what is printed
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)
    if sys.stderr is None or (isinstance(sys.stderr, io.TextIOWrapper) and _number(sys.stderr) == 2):
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        buffer = io.BufferedWriter(_Forgiving(2, "w", closefd=False))
        log = _Log(buffer, encoding, ESCAPED, line_buffering=True)
        log.replaced, sys.stderr = sys.stderr, log


def _number(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except OSError:
        return None
