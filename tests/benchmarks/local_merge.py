"""Time whole processes that merge a pair of local checkpoints, this package's and its peers'.

python pairs.py FOLDER, then python local_merge.py --pairs FOLDER, with the Python that has
speechft-merge. Before each run the inputs are read, so that the page cache has them, and `sync` is
called; after it the output is deleted. A first round, not counted, warms imports and compares each
output with a float64 reference. For Linux.

This process stays on the standard library: a child's peak memory starts at its parent's.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Compiled modules are kept, as an installed package has them: an editable install would compile its own in each run.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ALPHA = 0.25
OUTPUT = "{output}"  # in a command: the empty folder made for each run
COPY, START = "cp of one file", 'python -c "import numpy"'
OURS = ("speechft-merge, safetensors", "speechft-merge, .bin")
MERGEKIT = "mergekit-pytorch, safetensors"
MAX_MB = 120
MAX_COPIES = 3  # wall time of the merge, in copies of one file, beside the start of Python and numpy


@dataclass(frozen=True)
class Pair:
    """A pair made by pairs.py, and the targets for it."""

    name: str
    dtype: str
    max_cpu: float  # seconds
    below_mergekit: float  # factor, in CPU time


PAIRS = (Pair("hubert", "float32", 1.0, 10), Pair("xlsr", "bfloat16", 4.0, 8))


@dataclass(frozen=True)
class Run:
    wall: float  # seconds
    cpu: float  # seconds, user and system
    rss: int  # bytes, at its peak


@dataclass
class Variant:
    name: str
    command: list[str]
    inputs: list[Path]
    merges: bool = True
    runs: list[Run] = field(default_factory=list)
    misrounded: float | None = None  # share of elements

    @property
    def wall(self) -> float:
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)

    @property
    def rss(self) -> int:
        return max(run.rss for run in self.runs)


@dataclass(frozen=True)
class Check:
    target: str
    found: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "PASS" if self.passed else "MISS"
        return f"{verdict}  {self.target}: {self.found:.2f} {self.unit} ({sign} {self.limit:.2f})"


def warm(paths: list[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def measure(command: list[str], log: Path, environment: dict[str, str] = ENVIRONMENT) -> Run:
    """Run a command to its end, its output going to a log."""
    to_log = [(os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, environment, file_actions=[*to_log, (os.POSIX_SPAWN_DUP2, 1, 2)])
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command[0]} failed ({os.waitstatus_to_exitcode(status)}):\n{log.read_text()[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def misrounded(pair: Path, output: Path) -> float:
    base, finetuned = (str(pair / "safetensors" / side / "model.safetensors") for side in ("base", "finetuned"))
    command = [sys.executable, str(HERE / "rounding.py"), base, finetuned, str(output), str(ALPHA)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def once(variant: Variant, pair: Path, scratch: Path, counted: bool) -> None:
    """Run a variant once; its time is kept, or its output is checked."""
    output = scratch / "output"
    output.mkdir()
    warm(variant.inputs)
    os.sync()
    run = measure([part.replace(OUTPUT, str(output)) for part in variant.command], scratch / "log")
    if counted:
        variant.runs.append(run)
    elif variant.merges:
        variant.misrounded = misrounded(pair, output)
    shutil.rmtree(output)


def mergekit_config(pair: Pair, files: list[Path]) -> str:
    """The configuration of a linear merge, in YAML."""
    pairs = zip(files, (1 - ALPHA, ALPHA), strict=True)
    models = [{"model": str(file), "parameters": {"weight": weight}} for file, weight in pairs]
    return json.dumps({"merge_method": "linear", "models": models, "dtype": pair.dtype})  # JSON is YAML


def version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def own_variants(folder: Path) -> Iterator[Variant]:
    """This package's command, and what it is held against on the same Python."""
    command = Path(sys.executable).with_name("speechft-merge")
    plain = [sys.executable, str(HERE / "plain_merge.py")]
    target = f"{OUTPUT}/merged"
    tensors = [folder / "safetensors" / side / "model.safetensors" for side in ("base", "finetuned")]
    pickles = [folder / "bin" / side / "pytorch_model.bin" for side in ("base", "finetuned")]
    yield Variant(COPY, ["cp", "--reflink=never", str(tensors[0]), OUTPUT], tensors[:1], merges=False)
    yield Variant(START, [sys.executable, "-c", "import numpy"], [], merges=False)
    for name, files in zip(OURS, (tensors, pickles), strict=True):
        models = [str(file.parent) for file in files]
        options = ["-o", target, "--alpha", str(ALPHA), "--no-fsync", "-q"]
        if command.exists():
            yield Variant(name, [str(command), *models, *options], files)
    for name, files in (("safetensors", tensors), (".bin", pickles)):
        models = [str(file) for file in files]
        yield Variant(f"plain script, {name}", [*plain, *models, f"{target}.safetensors", str(ALPHA)], files)


def peers(pair: Pair, folder: Path, scratch: Path, options: argparse.Namespace) -> Iterator[Variant]:
    """The peers whose Python was given."""
    files = [folder / "safetensors" / side / "model.safetensors" for side in ("base", "finetuned")]
    if options.mergekit_python:
        config = scratch / "mergekit.yaml"
        config.write_text(mergekit_config(pair, files))
        command = options.mergekit_python.with_name("mergekit-pytorch")
        yield Variant(MERGEKIT, [str(command), str(config), OUTPUT], files)
    if options.sd_mecha_python:
        script, models = str(HERE / "sd_mecha_merge.py"), [str(file) for file in files]
        output = [f"{OUTPUT}/merged.safetensors", str(ALPHA), pair.dtype]
        yield Variant("sd-mecha, safetensors", [str(options.sd_mecha_python), script, *models, *output], files)


def checks(pair: Pair, variants: dict[str, Variant]) -> Iterator[Check]:
    """Hold what was measured against the targets."""
    allowed = MAX_COPIES * variants[COPY].wall + variants[START].wall
    for ours in (variants[name] for name in OURS if name in variants):
        yield Check(f"{ours.name}: CPU", ours.cpu, pair.max_cpu, "s")
        if mergekit := variants.get(MERGEKIT):
            target = f"{ours.name}: CPU of mergekit-pytorch over ours"
            yield Check(target, mergekit.cpu / ours.cpu, pair.below_mergekit, "times", at_least=True)
        yield Check(f"{ours.name}: wall, against {MAX_COPIES} copies and the start", ours.wall, allowed, "s")
        yield Check(f"{ours.name}: peak RSS", ours.rss / 1e6, MAX_MB, "MB")


def table(variants: dict[str, Variant]) -> str:
    """The measurements, in Markdown."""
    ours = variants.get(OURS[0])
    lines = [
        "| variant | wall s, median (min) | CPU s, median | peak RSS MiB | wall, of cp | CPU, of ours | misrounded |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in variants.values():
        wall = f"{variant.wall:.2f} ({min(run.wall for run in variant.runs):.2f})"
        copies = f"{variant.wall / variants[COPY].wall:.1f}x"
        ratio = f"{variant.cpu / ours.cpu:.1f}x" if ours else ""
        wrong = "" if variant.misrounded is None else f"{variant.misrounded:.3%}"
        cells = [variant.name, wall, f"{variant.cpu:.2f}", f"{variant.rss / 2**20:.0f}", copies, ratio, wrong]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bench(pair: Pair, options: argparse.Namespace) -> dict[str, Variant]:
    """Run all variants on a pair in interleaved rounds, each round from another start."""
    folder = options.pairs / pair.name
    with tempfile.TemporaryDirectory(dir=options.pairs, prefix="bench-") as temporary:
        scratch = Path(temporary)
        variants = [*own_variants(folder), *peers(pair, folder, scratch, options)]
        for number in range(options.rounds + 1):
            print(f"{pair.name}: round {number} of {options.rounds}", file=sys.stderr)
            turn = number % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                once(variant, folder, scratch, counted=number > 0)
    return {variant.name: variant for variant in variants}


def machine(options: argparse.Namespace) -> dict[str, str]:
    """What the figures depend on."""
    facts = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPUs": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
    }
    own = Path(sys.executable)
    for package in ("numpy", "torch", "safetensors"):
        facts[package] = version(own, package)
    for package, python in (("mergekit", options.mergekit_python), ("sd-mecha", options.sd_mecha_python)):
        if python:
            facts[package] = version(python, package)
    return facts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time local merges, ours and the peers'.")
    parser.add_argument("--pairs", type=Path, required=True, help="the folder given to pairs.py")
    parser.add_argument("--only", choices=[pair.name for pair in PAIRS], help="one pair (default: all there)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit-python", type=Path, help="Python that has mergekit (default: not run)")
    parser.add_argument("--sd-mecha-python", type=Path, help="Python that has sd-mecha (default: not run)")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def main() -> None:
    options = arguments()
    facts = machine(options)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if not Path(sys.executable).with_name("speechft-merge").exists():
        print("speechft-merge is not installed beside this Python: left out", file=sys.stderr)
    record: dict[str, object] = {"machine": facts}
    for pair in PAIRS:
        if options.only not in (None, pair.name) or not (options.pairs / pair.name).is_dir():
            continue
        variants = bench(pair, options)
        found = list(checks(pair, variants))
        print(f"\n## {pair.name}, {pair.dtype}\n\n{table(variants)}\n", *found, sep="\n")
        record[pair.name] = {
            "runs": {variant.name: [asdict(run) for run in variant.runs] for variant in variants.values()},
            "misrounded": {variant.name: variant.misrounded for variant in variants.values() if variant.merges},
            "checks": [asdict(check) | {"passed": check.passed} for check in found],
        }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
