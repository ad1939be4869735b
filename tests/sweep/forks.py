"""Runs the command in processes forked from one that has imported it, and ends each with a signal after a while.

Reads a line of JSON for each run: `args`, `folder`, `signal` and `after`, the seconds until it; answers with one:
`code`, `seconds` and `lived`, the seconds from the signal to the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = """
speechft_merge.cli.app speechft_merge.sweeping speechft_merge.scoring.command speechft_merge.cli.show_sweep
speechft_merge.similarity.probe soundfile soxr transformers.models.hubert.modeling_hubert
""".split()


def become(args: list[str], folder: str) -> NoReturn:
    os.chdir(folder)
    out = os.open("log", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(out, number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["speechft-merge", *args]
    from speechft_merge.__main__ import main

    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    os._exit(0)


def run(asked: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        become(asked["args"], asked["folder"])
    signalled = began
    if asked["signal"]:
        while time.monotonic() - began < asked["after"]:
            time.sleep(0.002)
        signalled = time.monotonic()
        os.kill(pid, asked["signal"])
    _, status = os.waitpid(pid, 0)
    code, now = os.waitstatus_to_exitcode(status), time.monotonic()
    log = Path(asked["folder"], "log").read_text(errors="replace")
    return {"code": code if code >= 0 else 128 - code, "seconds": now - began, "lived": now - signalled, "log": log}


def serve() -> None:
    import torch

    torch.set_num_threads(1)  # no threads before a fork
    for name in PRELOADED:
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
