"""Merge a pair that is larger than memory, then once more with a SIGKILL at many random points.

python large_merge.py FOLDER [--gib 25] [--kills 50]: the base is one .pt, the fine-tune sharded safetensors; with
--finetuned pt it is one .pt too, as is the output then, and nothing is killed. The models are sparse files (the first
MiB of each tensor is random, the rest zeros), the output is not: it takes 25 GiB.
Prints wall, CPU, peak RSS and MB/s, and of the kills how much work each cost, and whether the bytes are the same.
For Linux. This process stays on the standard library: a child's peak memory starts at its parent's.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PAIR = Path(__file__).with_name("large_pair.py")
SHARD = "500MB"


def command(base: Path, finetuned: Path, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "speechft_merge", str(base), str(finetuned), "-o", str(output), "--no-fsync", "-q",
        *(["--format", "safetensors", "--max-shard-size", SHARD] if finetuned.is_dir() else []),
    ]  # fmt: skip


def whole_run(words: list[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds, and the peak RSS in MB."""
    start = time.perf_counter()
    pid = os.posix_spawn(words[0], words, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"the merge failed: {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def finished(output: Path) -> tuple[int, int]:
    """Shards that a run which was killed has left whole, and files that it had begun."""
    whole, begun = 0, 0
    for folder in output.parent.glob(f".{output.name}.*.partial"):
        journal = folder / "finished.json"
        known = {entry["entry"]["file"] for entry in json.loads(journal.read_text())} if journal.exists() else set()
        there = {path.name for path in (folder / "data").glob("*")}
        whole, begun = whole + len(known & there), begun + len(there - known)
    return whole, begun


def checksums(output: Path) -> dict[str, str]:
    return {
        entry["file"]: entry["xxh128"] for entry in json.loads((output / "speechft_merge.json").read_text())["outputs"]
    }


def killed_runs(words: list[str], output: Path, kills: int, wall: float) -> tuple[int, int, float]:
    """Kill runs at random points until the output is there.

    Returns:
        Kills, the most shards that one of them cost, and the wall seconds of the run that ended it.
    """
    chance = random.Random(0)
    before, worst, done = 0, 0, 0
    while done < kills:
        process = subprocess.Popen(words)
        try:
            code = process.wait(0.3 + chance.random() * wall / 8)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
        else:
            if code:
                raise SystemExit(f"a run after a kill failed: {code}")
            shutil.rmtree(output)  # it was done before the kills were used up: begin again
            before = 0
            continue
        whole, begun = finished(output)
        worst = max(worst, begun, before - whole)
        before = whole
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return done, worst, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge a pair larger than memory, and kill it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=int, default=25)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--finetuned", choices=("shards", "pt"), default="shards")
    options = parser.parse_args()
    for gib in sorted({max(1, options.gib // 5), options.gib}):
        subprocess.run([sys.executable, PAIR, options.folder, str(4 * gib), options.finetuned], check=True)
        ending = ".pt" if options.finetuned == "pt" else ""
        base, finetuned = options.folder / f"base{4 * gib}.pt", options.folder / f"finetuned{4 * gib}{ending}"
        output = options.folder / "merged"
        shutil.rmtree(output, ignore_errors=True)
        words = command(base, finetuned, output)
        wall, cpu, rss = whole_run(words)
        print(f"{gib} GiB: {wall:.1f} s wall, {cpu:.1f} s CPU, {rss:.0f} MB, {gib * 1074 / wall:.0f} MB/s", flush=True)
    if options.finetuned == "pt":  # the whole output is one file, so a kill costs all of it
        return
    expected = checksums(output)
    shutil.rmtree(output)
    kills, worst, last = killed_runs(words, output, options.kills, wall)
    same = checksums(output) == expected
    print(f"{kills} kills: at most {worst} shards of {SHARD} lost by one, the last run took {last:.1f} s, same: {same}")
    if not same or worst > 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
