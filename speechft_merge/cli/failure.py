"""Says why a command failed: the error, what was found and a hint; with `--json` one object, all on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from speechft_merge.errors import SpeechFTMergeError
from speechft_merge.text import columns_of, fit, wrapped

_MOST = {"error": 900, "found": 400, "hint": 600}
"""Characters of each part: names out of foreign files may have megabytes."""
_RENAMED = {
    "--force": "pass --overwrite to replace an existing output, --allow-unrelated to merge models that seem unrelated "
    "or share little",
    "--threads": "pass --workers",
}
"""Options of earlier versions, and what to pass instead."""

_LIMITED = "check the limits of this job: memory (ulimit -v, --mem) and processes (ulimit -u)"
_INSTALLED = "check the installation (pip check), and whether memory is limited (ulimit -v)"
_BUG = "please report this bug in speechft-merge, with the traceback (SPEECHFT_MERGE_DEBUG=1 shows it)"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command ended without its result."""

    error: str
    found: str | None = None
    hints: tuple[str, ...] = ()
    exit_code: int = 1
    unexpected: bool = False
    """A bug in speechft-merge."""

    def in_words(self) -> str:
        """Return the lines for people, fit to the terminal."""
        lines = [f"speechft-merge: error: {fit(self.error, _MOST['error'])}"]
        lines += [f"  found: {fit(self.found, _MOST['found'])}"] if self.found else []
        lines += [f"hint: {fit(hint, _MOST['hint'])}" for hint in self.hints]
        return "\n".join(wrapped(line, columns_of(sys.stderr), "  ") for line in lines)

    def in_json(self) -> str:
        """Return the same as one JSON object on one line."""
        parts = {"error": self.error, "found": self.found, "hint": "; ".join(self.hints) or None}
        told = {key: None if text is None else fit(text, _MOST[key]) for key, text in parts.items()}
        return json.dumps(told | {"exit_code": self.exit_code})


def explain(error: BaseException) -> Failure:
    """Return the message and the exit code for an exception."""
    notes = tuple(getattr(error, "__notes__", ()))
    if isinstance(error, SpeechFTMergeError):
        return Failure(error.message, error.found, ((error.hint,) if error.hint else ()) + notes, error.exit_code)
    if isinstance(error, SystemExit):
        code = int(error.code or 0)
        return Failure(f"stopped by {signal.Signals(code - 128).name}", None, notes, code)
    if hasattr(error, "format_message"):  # Typer refused the words of the command line; its class is private
        return _explain_usage(error)
    if isinstance(error, OSError):  # stdout is full
        return Failure(f"cannot write to stdout: {error.strerror or error}", None, notes, os.EX_IOERR)
    if isinstance(error, MemoryError):
        return Failure(str(error) or "out of memory", None, (*notes, _LIMITED))
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] != "speechft_merge":
        return Failure(f"{error.name or 'a package'} cannot be imported: {_reason(error)}", None, (*notes, _INSTALLED))
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return Failure("no thread can be started", None, (*notes, _LIMITED))
    return Failure(f"{type(error).__name__}: {error}".removesuffix(": "), None, (*notes, _BUG), unexpected=True)


def _reason(error: ImportError) -> str:
    """Return the last line of what may be a page of advice: there numpy says what the linker said."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def _explain_usage(error: Any) -> Failure:
    """Return what Typer found wrong in the style of all errors: lower case, no full stop, the advice apart."""
    option, near = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    message = str(error.message if near else error.format_message()).rstrip(".")
    message = message.replace("a valid int range", "a whole number").replace("a valid float", "a number")
    context = getattr(error, "ctx", None)
    usual = (f"run {context.command_path} -h for what it takes",) if context is not None else ()
    meant = (f"did you mean {near[0]}?",) if near else ()
    told = (_RENAMED[option],) if option in _RENAMED else _owners(option, context)
    return Failure(message[:1].lower() + message[1:], None, told or (*meant, *usual), error.exit_code)


def _owners(option: str | None, context: Any) -> tuple[str, ...]:
    """Return in a sentence which of the other commands have an option."""
    others = getattr(getattr(context.parent, "command", None), "commands", {}) if option and context else {}
    words = {name: {word for one in command.params for word in one.opts} for name, command in others.items()}
    owners = [name for name in words if option in words[name]]
    return (f"{option} is an option of {' and of '.join(owners)}",) if owners else ()
