"""Runs the command line: signals, exceptions and exit codes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from itertools import takewhile
from typing import NoReturn

from speechft_merge.system import require_system, set_own

DEBUG = "SPEECHFT_MERGE_DEBUG"
"""Environment variable: set to anything, errors come with their traceback."""

_ENDING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU")
SIGNALS = tuple(number for number in signal.Signals if number.name in _ENDING)  # of which Windows has two
"""What ends a job: Ctrl-C, a scheduler's warning, a terminal that closes, used up CPU time."""

_OPEN_MAX = 10_240
"""Most open files that macOS lets a process ask for, though it says that there is no limit (setrlimit(2))."""


def run() -> NoReturn:
    """Run the command line and exit."""
    finished: list[int] = []
    _STOPPED.clear()
    atexit.register(_leave, finished)  # the first is called last
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell without job control ignores SIGINT for `command &`
            signal.signal(number, _stop)
    # before numpy is imported: its BLAS would start a thread and take memory per core for sums of squares
    set_own("OPENBLAS_NUM_THREADS", "1")
    # torch's threads spin at every barrier: on cores that others use too, a comparison took five times as long
    set_own("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(1_000_000, 20, 20)  # torch and transformers make fewer objects, and their modules stay
    try:
        from speechft_merge.cli.streams import prepare_streams  # from here on a signal is handled

        prepare_streams()
        if not {"-h", "--help"} & {*sys.argv}:
            require_system()
            _allow_files()
        from speechft_merge.cli.app import app

        code = app(prog_name=_program_name(), standalone_mode=False)
        _ignore_signals()  # all is done and told
        finished.append(code or 0)
    except (Exception, Stopped) as error:
        _fail(error)
    sys.exit(code)


def _leave(finished: list[int]) -> None:
    """End the process after a success as it is: taking down torch object by object takes half a second.

    Threads are joined by then, and what packages do at the exit is done.
    """
    if finished:
        with contextlib.suppress(OSError, ValueError):  # what cannot be flushed, the usual exit tells
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(finished[0])


def _allow_files() -> None:
    """Open as many files as the system lets us: a model may have hundreds of shards."""
    import resource  # not on Windows

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (most, max(now, _OPEN_MAX)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return


class Stopped(SystemExit):
    """The end by a signal, as an exception: SIGTERM itself would run no `finally`, and a half-written output stay."""


_STOPPED: list[Stopped] = []
"""The signal that came, if one did."""


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _: object) -> NoReturn:
    _ignore_signals()
    _STOPPED.append(Stopped(128 + number))
    raise _STOPPED[0]


def _fail(error: Exception | Stopped) -> NoReturn:
    if _STOPPED and not isinstance(error, Stopped):  # within an import, C code makes "initialization failed" of it
        error = _STOPPED[0]
    from speechft_merge.background import is_any_left, leave  # only now: most runs succeed
    from speechft_merge.cli.failure import explain

    # looked for here: the command line may be what is wrong, and a signal may come before it was read
    failure, as_json = explain(error), "--json" in takewhile(lambda word: word != "--", sys.argv[1:])
    if DEBUG in os.environ or (failure.unexpected and not as_json):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Stopped) and sys.stderr.isatty():
        print(file=sys.stderr)  # after the terminal's ^C
    print(failure.in_json() if as_json else failure.in_words(), file=sys.stderr)
    if isinstance(error, Stopped) and is_any_left():
        leave()
        os._exit(failure.exit_code)  # an exit would wait for threads of the Hub's client, which wait for a server
    sys.exit(failure.exit_code)


def _program_name() -> str:
    return "python -m speechft_merge" if sys.argv[0].endswith("__main__.py") else "speechft-merge"
