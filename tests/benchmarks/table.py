"""Make one table of this tool against its peers: time, memory, bytes and rounding of merges of local models.

python table.py --only hubert, with the Python that has speechft-merge, torch and transformers. Makes each pair
when its turn comes and deletes it afterwards (see pairs.py); prints Markdown. For Linux.

Before each run the inputs are read, so that the page cache has them, and `sync` is called; after it the output is
deleted. A first round, not counted, warms imports and compares each output with a float64 reference; a last one, of
which only the bytes fetched from the disk are kept, begins without the inputs in the page cache.

This process stays on the standard library, see runs.py.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from machine import facts, has_cuda
from runs import Failed, Run, evict, measure, warm
from targets import TARGETS, Check, Taken, checks
from tools import ALPHA, HERE, Job, Tool, ours, peers, weights

KINDS = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors", "sharded": "shards of safetensors"}
COPY, CAT, START = "cp of one model", "cat of both inputs", 'python -c "import numpy"'
OURS = "speechft-merge --workers 1"
SPACE = 1.05  # of the files, for the small ones beside them


@dataclass(frozen=True)
class Pair:
    """A pair that pairs.py makes."""

    name: str
    title: str
    dtype: str
    size: int  # bytes of one model


PAIRS = (
    Pair("hubert", "HuBERT Base", "float32", 378_000_000),
    Pair("wav2vec2", "wav2vec 2.0 Large", "float32", 1_262_000_000),
    Pair("xlsr", "XLS-R-1B", "bfloat16", 1_925_000_000),
    Pair("whisper", "Whisper-large-v3", "float16", 3_087_000_000),
)


@dataclass
class Variant:
    """A command, and what became of it."""

    name: str
    command: list[str]
    merges: bool = True
    runs: list[Run] = field(default_factory=list)
    misrounded: float | None = None  # share of elements
    fetched: int | None = None  # bytes from the disk
    failure: str = ""  # once it failed, it is not run again

    @property
    def taken(self) -> Taken:
        wall, cpu = (statistics.median(getattr(run, name) for run in self.runs) for name in ("wall", "cpu"))
        return Taken(wall, cpu, max(run.rss for run in self.runs))


def variants(job: Job, tools: list[Tool]) -> Iterator[Variant]:
    """What the machine can do, then this tool, then its peers."""
    files = [str(file) for file in weights(job.base)]
    both = [*files, *(str(file) for file in weights(job.finetuned))]
    yield Variant(COPY, ["cp", "--reflink=never", *files, str(job.output)], merges=False)
    yield Variant(CAT, ["sh", "-c", 'exec cat "$@" > /dev/null', "cat", *both], merges=False)
    yield Variant(START, [sys.executable, "-c", "import numpy"], merges=False)
    for tool in tools:
        yield Variant(tool.name, tool.command(job))


def own_tools() -> Iterator[Tool]:
    """This tool, with what changes its speed."""
    for workers in ("1", "2"):
        yield Tool(f"speechft-merge --workers {workers}", ours("--workers", workers))
    if has_cuda():
        yield Tool("speechft-merge --device cuda", ours("--device", "cuda"))


def misrounded(job: Job) -> float:
    command = [sys.executable, str(HERE / "rounding.py"), *map(str, job.models), str(job.output), str(ALPHA)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run_once(variant: Variant, job: Job, cached: bool) -> Run:
    """Run a variant into an empty folder."""
    shutil.rmtree(job.output, ignore_errors=True)
    job.output.mkdir()
    os.sync()
    inputs = [file for model in job.models for file in weights(model)]
    (warm if cached else evict)(inputs)
    return measure(variant.command, job.scratch / "log")


def first(variant: Variant, job: Job) -> None:
    """Warm imports, and check what is written; what fails is told and left out of the other rounds."""
    try:
        run_once(variant, job, cached=True)
    except Failed as error:
        variant.failure = f"exit {error.exit_status}: {error.last_line}"
        return
    if variant.merges:
        variant.misrounded = misrounded(job)


def bench(job: Job, tools: list[Tool], rounds: int) -> dict[str, Variant]:
    """Run all variants in interleaved rounds, each round from another start."""
    found = list(variants(job, tools))

    def counted(variant: Variant, job: Job) -> None:
        variant.runs.append(run_once(variant, job, cached=True))

    def uncached(variant: Variant, job: Job) -> None:
        variant.fetched = run_once(variant, job, cached=False).fetched

    steps: list[Callable[[Variant, Job], None]] = [first, *[counted] * rounds, uncached]
    for number, step in enumerate(steps):
        print(f"{job.base.parent}: round {number} of {len(steps) - 1}", file=sys.stderr)
        turn = number % len(found)
        for variant in found[turn:] + found[:turn]:
            if not variant.failure:
                step(variant, job)
    shutil.rmtree(job.output)
    return {variant.name: variant for variant in found}


def row(variant: Variant, copy: Taken) -> list[str]:
    """The cells of a variant."""
    if variant.failure:
        return [variant.name, f"failed, {variant.failure[:70]}", *[""] * 7]
    taken, runs = variant.taken, variant.runs
    wrong = "" if variant.misrounded is None else f"{variant.misrounded:.3%}"
    return [
        variant.name,
        f"{taken.wall:.2f} ({min(run.wall for run in runs):.2f} to {max(run.wall for run in runs):.2f})",
        f"{taken.cpu:.2f}",
        f"{taken.wall / copy.wall:.1f}x",
        f"{taken.rss / 2**20:.0f}",
        f"{statistics.median(run.read for run in runs) / 1e6:.0f}",
        f"{(variant.fetched or 0) / 1e6:.0f}",
        f"{statistics.median(run.written for run in runs) / 1e6:.0f}",
        wrong,
    ]


def table(found: dict[str, Variant]) -> str:
    """The measurements, in Markdown."""
    heads = (
        "variant, wall s (min to max), CPU s, wall in cp, peak RSS MiB, MB read, MB from disk, MB written, misrounded"
    )
    rows = [heads.split(", "), ["---"] * 9, *(row(variant, found[COPY].taken) for variant in found.values())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def held(pair: Pair, found: dict[str, Variant]) -> list[Check]:
    """This tool with one worker, against the targets."""
    if found[OURS].failure:
        return []
    mergekit = found.get("mergekit-pytorch")
    beside = mergekit.taken if mergekit and not mergekit.failure else None
    mine, copy, start = (found[name].taken for name in (OURS, COPY, START))
    return list(checks(TARGETS.get(pair.name), mine, copy, start, beside))


def make(pair: Pair, kind: str, folder: Path) -> bool:
    """Make a pair if it is not there, and there is room; tells whether it was made."""
    if (folder / pair.name / kind).exists():
        return False
    command = [sys.executable, str(HERE / "pairs.py"), str(folder), "--only", pair.name, "--kind", kind]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return True


def missing_space(pair: Pair, kind: str, folder: Path) -> int:
    """Bytes that two inputs and an output need beyond what is free."""
    files = 1 if (folder / pair.name / kind).exists() else 3
    return int(files * pair.size * SPACE) - shutil.disk_usage(folder).free


def arguments() -> argparse.Namespace:
    names = [pair.name for pair in PAIRS]
    parser = argparse.ArgumentParser(description="Make one table of this tool against its peers.")
    parser.add_argument("--pairs", type=Path, default=Path("pairs"), help="where pairs are, or are made (%(default)s)")
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="these pairs (default: all)")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS), help="these containers (default: all)")
    parser.add_argument("--keep", action="store_true", help="keep the pairs that are made here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit-python", type=Path, help="Python that has mergekit (default: not run)")
    parser.add_argument("--sd-mecha-python", type=Path, help="Python that has sd-mecha (default: not run)")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def compare(pair: Pair, kind: str, tools: list[Tool], options: argparse.Namespace) -> dict[str, object]:
    """Make a pair, run all on it, print the table; returns every run."""
    made = make(pair, kind, options.pairs)
    models = options.pairs / pair.name / kind
    try:
        with tempfile.TemporaryDirectory(dir=options.pairs, prefix="bench-") as temporary:
            scratch = Path(temporary)
            job = Job(models / "base", models / "finetuned", scratch / "output", pair.dtype, scratch)
            found = bench(job, tools, options.rounds)
    finally:
        if made and not options.keep:
            shutil.rmtree(models)
            with suppress(OSError):  # it holds other containers
                models.parent.rmdir()
    checked = held(pair, found)
    print(
        f"\n## {pair.title}, {pair.dtype}, {KINDS[kind]}\n\n{table(found)}\n\n{OURS}:", *checked, sep="\n", flush=True
    )
    return {
        "variants": {variant.name: asdict(variant) for variant in found.values()},
        "checks": [asdict(check) | {"passed": check.passed} for check in checked],
    }


def main() -> None:
    options = arguments()
    options.pairs.mkdir(parents=True, exist_ok=True)
    machine = facts(options.mergekit_python, options.sd_mecha_python)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    tools = [*own_tools(), *peers(options.mergekit_python, options.sd_mecha_python)]
    record: dict[str, object] = {"machine": machine}
    for pair in (pair for pair in PAIRS if pair.name in options.only):
        for kind in options.kind:
            if (missing := missing_space(pair, kind, options.pairs)) > 0:
                print(f"\n{pair.title}, {KINDS[kind]}: left out, {missing / 1e9:.1f} GB of disk are missing")
                continue
            record[f"{pair.name}/{kind}"] = compare(pair, kind, tools, options)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
