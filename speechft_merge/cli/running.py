"""From the shell to a command and back: signals, exceptions and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

from speechft_merge.cli.output import clean
from speechft_merge.errors import SpeechFTMergeError

DEBUG = "SPEECHFT_MERGE_DEBUG"
"""Environment variable: set to anything, errors come with their traceback."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run() -> NoReturn:
    """Run the command line; always exits."""
    # before numpy is imported: its BLAS would start a thread and take memory per core for sums of squares
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell without job control ignores SIGINT for `command &`
            signal.signal(number, _stop)
    try:
        from speechft_merge.cli.app import app

        app(prog_name=_program_name())
    except SpeechFTMergeError as error:
        _fail(error, error.exit_code)
    except SystemExit as stop:
        for note in getattr(stop, "__notes__", ()):
            print(f"speechft-merge: {note}", file=sys.stderr)
        raise
    except BrokenPipeError:  # `| head` read enough; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except MemoryError as error:
        _fail(error, 1)
    sys.exit(0)


def _stop(number: int, _: object) -> NoReturn:
    """Python leaves no trace of SIGTERM by itself: `finally` would not run, and a half-written output would stay."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    print(f"speechft-merge: stopped by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


def _fail(error: BaseException, code: int) -> NoReturn:
    if DEBUG in os.environ:
        traceback.print_exception(error)
    lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    print("speechft-merge: error: " + clean("\n  ".join(lines), keep="\n"), file=sys.stderr)
    sys.exit(code)


def _program_name() -> str:
    return "python -m speechft_merge" if sys.argv[0].endswith("__main__.py") else "speechft-merge"
