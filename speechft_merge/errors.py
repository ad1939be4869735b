"""The few exceptions of the library, each with the exit code the command line gives it (sysexits where one fits)."""

from __future__ import annotations

from itertools import islice
from typing import Self

QUOTED = 80
"""Characters of foreign text that a message quotes; files hold names and shapes of megabytes."""


class SpeechFTMergeError(Exception):
    """Something the user can act upon: what is wrong, what was found instead, and what to do about it.

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
        """Return the same error, its message led by the file or object in which it arose."""
        return type(self)(f"{where}: {self.message}", found=self.found, hint=self.hint)


def quote(value: object, limit: int = QUOTED) -> str:
    """Return the repr of foreign text, or of a value out of a foreign file, cut to about `limit` characters."""
    if isinstance(value, (str, bytes, list, tuple)):
        value = value[: limit + 1]  # the repr of a whole shape may take longer than reading its file
    elif isinstance(value, dict):
        value = dict(islice(value.items(), limit + 1))
    text = repr(value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


class UsageError(SpeechFTMergeError, ValueError):
    """An argument or recipe that cannot be meant."""

    exit_code = 2


class CheckpointError(SpeechFTMergeError, ValueError):
    """A checkpoint that is damaged, hostile or of a kind that cannot be read."""

    exit_code = 65


class MismatchError(CheckpointError):
    """Two readable checkpoints that do not belong together, or data that must not be merged."""


class NotFoundError(SpeechFTMergeError, FileNotFoundError):
    """No such file, folder, or weights in it; or they may not be read."""

    exit_code = 66


class OutputError(SpeechFTMergeError, OSError):
    """The output cannot be created where it was asked for."""

    exit_code = 73


class WriteError(OutputError):
    """Writing began and failed: disk full, quota, I/O error."""

    exit_code = 74


class TemporaryError(SpeechFTMergeError):
    """The network, the Hub or its limits stood in the way; the same call may work later."""

    exit_code = 75
