"""Runs the command line: signals, exceptions and exit codes."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import traceback
from itertools import takewhile
from typing import NoReturn

DEBUG = "SPEECHFT_MERGE_DEBUG"
"""Environment variable: set to anything, errors come with their traceback."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run() -> NoReturn:
    """Run the command line and exit."""
    # before numpy is imported: its BLAS would start a thread and take memory per core for sums of squares
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # torch's threads spin at every barrier: on cores that others use too, a comparison took five times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(100_000, 20, 20)  # looking for cycles while modules are imported finds none, and takes 4 ms
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a merge
            stream.reconfigure(errors="backslashreplace")
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell without job control ignores SIGINT for `command &`
            signal.signal(number, _stop)
    try:
        from speechft_merge.cli.app import app

        code = app(prog_name=_program_name(), standalone_mode=False)
    except (Exception, Stopped) as error:
        _fail(error)
    sys.exit(code)


class Stopped(SystemExit):
    """The end by a signal, as an exception: SIGTERM itself would run no `finally`, and a half-written output stay."""


def _stop(number: int, _: object) -> NoReturn:
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(128 + number)


def _fail(error: Exception | Stopped) -> NoReturn:
    from speechft_merge.cli.failure import explain  # only now: most runs succeed

    # looked for here: the command line may be what is wrong, and a signal may come before it was read
    failure, as_json = explain(error), "--json" in takewhile(lambda word: word != "--", sys.argv[1:])
    if DEBUG in os.environ or (failure.unexpected and not as_json):
        traceback.print_exception(error)
    print(failure.in_json() if as_json else failure.in_words(), file=sys.stderr)
    sys.exit(failure.exit_code)


def _program_name() -> str:
    return "python -m speechft_merge" if sys.argv[0].endswith("__main__.py") else "speechft-merge"
