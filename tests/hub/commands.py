"""The command as a process of its own, forked from one that has imported what the command will import.

That halves its cost. huggingface_hub is not among it: what it takes from the environment it takes when it is imported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = """
numpy yaml typer httpx httpx2 speechft_merge.cli.app speechft_merge.merging speechft_merge.executor.chunk
speechft_merge.executor.executor speechft_merge.sources.hub speechft_merge.sources.readahead speechft_merge.push
speechft_merge.record.layers
""".split()


def run_command(
    args: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path, err: Path, patient: bool
) -> None:
    """Become the command, its output going to files; unless `patient`, every wait between two tries is cut short."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    if not patient:
        hasten()
    sys.argv = ["speechft-merge", *args]
    assert "huggingface_hub" not in sys.modules
    from speechft_merge.__main__ import main

    main()


def hasten() -> None:
    """Tests ask what is done between two tries, not how long it takes."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.02))


if __name__ == "__main__":  # without the fork
    hasten()
    from speechft_merge.__main__ import main

    main()
