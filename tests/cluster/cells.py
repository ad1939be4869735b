"""A stand-in for a sweep, quick to run: makes the cells of its share that are not there yet, one file each.

It heeds `--task i/n` and `-o DIR`. Each line of DIR/made/NAME is one time that a cell was made.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from speechft_merge.sweep.share import Share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--task", default="0/1")
    parser.add_argument("-o", dest="folder", type=Path)
    options, _ = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    share = Share.from_environment(os.environ) if options.task == "auto" else Share.parse(options.task)
    for name in ("cells", "made"):
        (options.folder / name).mkdir(parents=True, exist_ok=True)
    for i in share.of(range(12)):
        path = options.folder / "cells" / f"{i}.json"
        if not path.exists():
            time.sleep(options.seconds)
            with (options.folder / "made" / str(i)).open("a") as file:
                print(share, file=file)
            hidden = path.with_name(f".{os.getpid()}")
            hidden.write_text(json.dumps({"alpha": i / 12}))
            hidden.replace(path)


if __name__ == "__main__":
    main()
