"""Merge a fine-tune at several alphas with `speechft-merge`, and measure what each merge can do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.speech_ft.encoder import load
from examples.speech_ft.tasks import Tasks

Record = dict[str, Any]
Settings = dict[str, list[str]]
"""Name of a merge -> options of the command."""

ALPHAS: Settings = {str(alpha): ["--alpha", str(alpha)] for alpha in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)}
RAMPS: Settings = {
    "rising": ["--layer-alpha", "layers=0.1:0.4"],
    "falling": ["--layer-alpha", "layers=0.4:0.1"],
}
"""Alphas of their own for the layers, from the first to the last; 0.25 on average, and elsewhere."""


def merge(base: Path, other: Path, out: Path, *options: str) -> int:
    """Run the command, unless its output is there already; its exit code."""
    command = [sys.executable, "-m", "speechft_merge", "merge", str(base), str(other), "-q", "-o", str(out), *options]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def must_merge(base: Path, other: Path, out: Path, *options: str) -> Path:
    """As `merge`, for what has to work."""
    if code := merge(base, other, out, *options):
        raise RuntimeError(f"speechft-merge {base} {other} {' '.join(options)}: exit code {code}")
    return out


def likeness(base: Path, finetuned: Path, merged: Path) -> dict[str, float]:
    """CKA of the merge to the base by `speechft-merge compare`, on its built-in probe: over all layers, of the last."""
    command = [sys.executable, "-m", "speechft_merge", "compare", *map(str, (base, finetuned, merged)), "-q", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "cka": found["mean"]["base_merged"]["cka"],
        "cka_last": found["layers"][-1]["base_merged"]["cka"],
    }


class Journal:
    """Records kept in a file of JSON lines, so that a run can be taken up where it broke off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        if path.exists():
            self.records = [json.loads(line) for line in path.read_text().splitlines()]

    def find(self, **key: Any) -> Record | None:
        """The first record with these entries."""
        return next((r for r in self.records if all(r.get(name) == value for name, value in key.items())), None)

    def add(self, **record: Any) -> None:
        """Keep and print a record."""
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in record.items()), flush=True)


def sweep(work: Path, finetuned: Path, key: Record, settings: Settings, tasks: Tasks, journal: Journal) -> None:
    """Measure one fine-tune in each of the settings."""
    for alpha, options in settings.items():
        if journal.find(**key, alpha=alpha):
            continue
        out = must_merge(
            work / "base", finetuned, work / "merged" / f"{finetuned.name}-{alpha}", "--keep-head", *options
        )
        model = load(out)
        known = journal.find(alpha="0.0") if alpha == "0.0" else None
        if known:  # the same encoder, under another head
            probes = {name: known[name] for name in ("identification_probe", "language", "phones")}
            figures = probes | {"identification": tasks.identification(model)}
        else:
            figures = tasks.measure(model)
        journal.add(**key, alpha=alpha, **figures, **likeness(work / "base", finetuned, out))


def floor(tasks: Tasks, journal: Journal) -> None:
    """What phones can be read from without any encoder."""
    if not journal.find(recipe="log-mel"):
        journal.add(recipe="log-mel", alpha="", phones=tasks.phones.readable(tasks.phones.spectra))


def control(work: Path, finetuned: Path, tasks: Tasks, journal: Journal) -> None:
    """Mix an unrelated encoder of the same shape into the fine-tune: refused, and forced, it destroys both tasks."""
    if journal.find(recipe="unrelated"):
        return
    for alpha in ("0.25", "0.5"):
        out = work / "merged" / f"unrelated-{alpha}"
        refused = merge(finetuned, work / "unrelated", out, "--alpha", alpha)
        model = load(must_merge(finetuned, work / "unrelated", out, "--alpha", alpha, "--allow-unrelated"))
        journal.add(recipe="unrelated", alpha=alpha, refused=refused, **tasks.measure(model))
