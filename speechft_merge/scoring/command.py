"""Scores a model by a user's command, which is given a model directory and prints a number or records."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from speechft_merge.errors import ScoreError, UsageError, quote
from speechft_merge.foreign import clean
from speechft_merge.scoring.answers import RECORD, parse_name, score_of_number, scores_of_records
from speechft_merge.system import foreign_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.scoring.scorer import Candidate
    from speechft_merge.scoring.scores import Better, Score

MODEL = "{model}"
"""What a command has where the path of the model directory goes."""
_TAIL = 4096
"""Bytes at the end of stderr that are looked at for what went wrong."""
_MOST = 256 << 20
"""Most bytes that a command may print: a million records have 80 MB."""
_LINES = 5
"""Lines of these that are shown."""

_WATCHED = """
exec 3<&0 </dev/null
all() {
  for stat in /proc/[0-9]*/stat; do
    read -r line <$stat && set -- $1 ${line%% *} ${line##*) } && [ $6 = $$ ] && [ $5 != $$ ] && kill -$1 $2
  done
  kill -$1 0
}
( ( trap '' TERM; read _ <&3; all TERM; sleep 1; all KILL ) >/dev/null 2>&1 & )
exec 3<&-
exec sh -c "$1"
"""
"""Runs a command in a session of which one process reads from us: however we end, SIGKILL included, it then ends the
others, on Linux those too that made a process group of their own, as timeout does. It is no child of the command, which
may wait for all its own."""


class CommandScorer:
    """Scores what a command prints on stdout, alone or as one JSON object a line; stderr is for everything else."""

    notes: Sequence[str] = ()
    needs_model = False
    needs_files = True

    def __init__(self, name: str, better: Better, command: str) -> None:
        self.name, self.better, self.command = name, better, command
        self.names: dict[str, Better] = {}
        digest = _digest(command)  # it may hold a password
        self.description: dict[str, Any] = {"kind": "command", "name": name, "better": better.value, "sha256": digest}

    def score(self, candidate: Candidate) -> list[Score]:
        """Write the model, run the command on it and return its scores.

        Raises:
            ScoreError: the command fails, or prints neither a number nor records.
        """
        with candidate.written() as folder:
            printed = run_command(self.command.replace(MODEL, shlex.quote(str(folder))), self.name)
        return read_printed(self.name, self.better, printed)


def parse_command_score(text: str) -> CommandScorer:
    """Parse `NAME=command {model}` or `NAME:lower=command {model}`.

    Raises:
        UsageError: it is not of this form.
    """
    head, equals, command = text.partition("=")
    if not equals or MODEL not in command:
        raise UsageError(
            f"{quote(text)} is not NAME=COMMAND with {MODEL} where the path of the model goes",
            hint=f"write it as --score 'wer:lower=./evaluate.sh {MODEL}'",
        )
    return CommandScorer(*parse_name(head.strip()), command.strip())


def _digest(command: str) -> str:
    """Return the sha256 of a command, and of the files that it names: a script that changes is another score."""
    total = hashlib.sha256(command.encode("utf-8", "surrogateescape"))
    try:
        words = shlex.split(command, comments=False)
    except ValueError:
        words = command.split()
    for word in words:
        with contextlib.suppress(OSError, ValueError):
            if Path(word).is_file():
                total.update(Path(word).read_bytes())
    return total.hexdigest()


def read_printed(name: str, better: Better, printed: str) -> list[Score]:
    """Return the scores in what a command printed: one number and nothing else, or a JSON object on each line.

    Lines that do not begin with `{` are left out where others do.

    Raises:
        ScoreError: it is neither.
    """
    lines = [line.strip() for line in printed.split("\n") if line.strip()]
    objects = [line for line in lines if line.startswith("{")]
    if objects:
        return scores_of_records(name, better, [_parse_line(line, name) for line in objects])
    hint = f"let it print the number alone (other lines to stderr, by >&2), or on each line {RECORD}"
    if not lines:
        raise ScoreError(f"{name}: the command printed nothing", hint=hint)
    try:
        (number,) = map(float, lines)
    except ValueError:
        said = f"{name}: the command printed neither one number nor records"
        raise ScoreError(said, found=_told(lines), hint=hint) from None
    return [score_of_number(name, better, number)]


def _parse_line(line: str, name: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ScoreError(f"{name}: the command printed {quote(line)}, which is not JSON") from None


def run_command(command: str, name: str) -> str:
    """Run a command by the shell and return what it prints on stdout.

    It has a session of its own, whose process group ends with it, and which ends with this process however that ends.

    Raises:
        ScoreError: it cannot be started, or ends with another exit code than 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            watched = ["sh", "-c", _WATCHED, "sh", command]
            process = subprocess.Popen(
                watched,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env=foreign_environment(),
            )
        except (OSError, ValueError) as error:
            raise ScoreError(f"{name}: the command cannot be started: {error}") from error
        try:
            code = _wait(process, out, name)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if code:
            told = _tail(err)
            raise ScoreError(f"{name}: the command {_ending(code)}", found=f"on its stderr: {told}" if told else None)
        out.seek(0)
        return out.read().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], out: IO[bytes], name: str) -> int:
    """Return the exit code of a process, unless it prints without end."""
    while True:
        if os.fstat(out.fileno()).st_size > _MOST:
            raise ScoreError(
                f"{name}: the command prints more than {_MOST >> 20} MB", hint="let it print its scores alone"
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1.0)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    return _told(file.read().decode(errors="replace").split("\n"))


def _told(lines: Sequence[str]) -> str:
    """Return the last lines of foreign text on one line, made harmless."""
    return " | ".join([clean(line.strip()) for line in lines if line.strip()][-_LINES:])
