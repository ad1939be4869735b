"""Make a table of what this tool and its peers do when something is wrong, each cell by running it.

python safety.py, with the Python that has speechft-merge, torch and transformers. Takes 2 GB of disk and some minutes;
prints Markdown. For Linux.
"""

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from hazards import HAZARDS, MARKER, Hazard, write_models
from machine import facts
from outcomes import Outcome, left_at
from runs import ENVIRONMENT, bytes_of
from tools import Job, Tool, ours, peers, weights

ATTEMPTS = 5
Start = Callable[[], "subprocess.Popen[bytes]"]


def size(model: Path) -> int:
    return sum(file.stat().st_size for file in weights(model))


def start(command: list[str], log: Path, most: int | None = None) -> "subprocess.Popen[bytes]":
    """Start a command, if asked with a limit on the bytes of each file that it writes."""

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT, preexec_fn=limit)


def kill_at(process: "subprocess.Popen[bytes]", written: int) -> int:
    """Kill a process as soon as it has written so many bytes; its exit code, 0 if it was faster."""
    while process.poll() is None:
        try:
            if bytes_of(process.pid)["wchar"] >= written:
                process.kill()
        except ProcessLookupError:
            break
    return process.wait()


def codes_of(hazard: Hazard, job: Job, command: list[str], log: Path) -> list[int]:
    """Run a command in the hazard's way."""
    half = size(job.base) // 2
    if hazard.way == "killed":
        for _ in range(ATTEMPTS):
            if code := kill_at(start(command, log), half):
                return [code]
            empty(job.output)
        raise SystemExit(f"{command[0]}: over before it could be killed, {ATTEMPTS} times")
    if hazard.way == "twice":
        return [process.wait() for process in [start(command, log), start(command, log)]]
    return [start(command, log, half if hazard.way == "full" else None).wait()]


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def outcome(tool: Tool, hazard: Hazard, job: Job, models: Path) -> Outcome:
    """Let a tool meet a hazard, and look at what it left."""
    log, command, marker = job.scratch / "log", tool.command(job), models / MARKER
    meant = models / hazard.base, models / (hazard.meant or hazard.finetuned)
    log.unlink(missing_ok=True)
    empty(job.output)
    codes = codes_of(hazard, job, command, log)
    told, left, executed = (
        log.read_text(errors="replace"),
        left_at(job.output, *meant),
        marker.exists() if hazard.meant else None,
    )
    if executed:
        marker.rmdir()
    again = None
    if hazard.way == "killed":
        again = start(command, log).wait(), left_at(job.output, *meant)
    return Outcome(codes, told, left, executed, again)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a table of what tools do when something is wrong.")
    parser.add_argument(
        "--work", type=Path, help="where the models are made, and deleted again (default: a temporary folder)"
    )
    parser.add_argument("--mergekit-python", type=Path, help="Python that has mergekit (default: not run)")
    parser.add_argument("--sd-mecha-python", type=Path, help="Python that has sd-mecha (default: not run)")
    parser.add_argument("--json", type=Path, help="also write every outcome, with its log, to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    machine = facts(options.mergekit_python, options.sd_mecha_python)
    tools = [Tool("speechft-merge", ours(), patterns=True), *peers(options.mergekit_python, options.sd_mecha_python)]
    record: dict[str, object] = {"machine": machine}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    print(f"| what is wrong | {' | '.join(tool.name for tool in tools)} |\n|{'---|' * (len(tools) + 1)}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="safety-") as temporary:
        scratch = Path(temporary)
        models = scratch / "models"
        write_models(models)
        for hazard in HAZARDS:
            sides = models / hazard.base, models / hazard.finetuned
            job = Job(*sides, scratch / "output", "float32", scratch, hazard.pattern)
            met = {
                tool.name: outcome(tool, hazard, job, models) for tool in tools if tool.patterns or not hazard.pattern
            }
            cells = [str(met.get(tool.name, "has no patterns")) for tool in tools]
            print(f"| {hazard.title} | {' | '.join(cells)} |", flush=True)
            record[hazard.title] = {name: asdict(found) | {"text": str(found)} for name, found in met.items()}
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
