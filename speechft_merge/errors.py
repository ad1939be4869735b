"""Defines the library's exceptions, each with its exit code on the command line (from sysexits.h where one fits)."""

from __future__ import annotations

from itertools import islice
from typing import Self

QUOTED = 80
"""Characters of foreign text that a message quotes; files hold names and shapes of megabytes."""


class SpeechFTMergeError(Exception):
    """An error that the user can act on: what is wrong, what was found instead, and what to do about it.

    Args:
        message: what is wrong, in one sentence without a full stop.
        found: what is there instead of what was expected.
        hint: what to do: an option to pass, a file to name.
    """

    exit_code = 1

    def __init__(self, message: str, *, found: str | None = None, hint: str | None = None) -> None:
        super().__init__("; ".join(part for part in (message, found and f"found {found}", hint) if part))
        self.message, self.found, self.hint = message, found, hint

    def within(self, where: str) -> Self:
        """Return the same error with `where` in front of its message: the file or object at fault."""
        return type(self)(f"{where}: {self.message}", found=self.found, hint=self.hint)


def quote(value: object, limit: int = QUOTED) -> str:
    """Return the repr of foreign text, or of a value out of a foreign file, cut to about `limit` characters."""
    if isinstance(value, (str, bytes, list, tuple)):
        value = value[: limit + 1]  # the repr of a whole shape may take longer than reading its file
    elif isinstance(value, dict):
        value = dict(islice(value.items(), limit + 1))
    text = repr(value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


def amount(count: int, noun: str, one: str = "", several: str = "") -> str:
    """Return `1 tensor` or `2 tensors`; with a verb for one and for several `1 tensor has`, `2 tensors have`."""
    return f"{count} {noun} {one}".rstrip() if count == 1 else f"{count} {noun}s {several}".rstrip()


class UsageError(SpeechFTMergeError, ValueError):
    """Invalid argument or recipe."""

    exit_code = 2


class CheckpointError(SpeechFTMergeError, ValueError):
    """A checkpoint that is damaged, hostile or of a kind that cannot be read."""

    exit_code = 65


class DeviceError(SpeechFTMergeError):
    """A GPU that is not there, has no memory left, or lacks a type of numbers."""


class MismatchError(CheckpointError):
    """Two readable checkpoints that do not belong together, or data that must not be merged."""


class NotFoundError(SpeechFTMergeError, FileNotFoundError):
    """A file, folder or weights that do not exist, or may not be read."""

    exit_code = 66


class ComparisonError(SpeechFTMergeError):
    """A comparison of features that failed after a merge; the merge is whole."""

    exit_code = 69


class ScoreError(SpeechFTMergeError):
    """A score that a user's command, function or data did not give; what was done before is kept."""

    exit_code = 69


class GateError(SpeechFTMergeError):
    """No cell of a sweep meets its gates; the report is written."""

    exit_code = 3


class OutputError(SpeechFTMergeError, OSError):
    """The output cannot be created at the given path."""

    exit_code = 73


class WriteError(OutputError):
    """Writing failed: disk full, quota, I/O error."""

    exit_code = 74


class TemporaryError(SpeechFTMergeError):
    """A failure of the network, the Hub or its rate limits; the same call may work later."""

    exit_code = 75
