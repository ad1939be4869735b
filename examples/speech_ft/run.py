"""Everything: fetch, prepare, fine-tune, merge, measure, report.

A second run goes on where one broke off, and several at once share the work.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from examples.finetune import finetune
from examples.journal import Journal
from examples.sources.encoders import State, open_base
from examples.speech_ft import plan, report
from examples.speech_ft.measure import PROBES, Bench, pack
from examples.speech_ft.plan import BASE, Job
from examples.speech_ft.prepare import prepare
from examples.speech_ft.tasks import PAIRS, QUICK, Sizes

HERE = Path(__file__).parent


class Laboratory:
    """The folder of a run, and what its jobs have in common."""

    def __init__(self, work: Path, sources: Path, journal: Path, sizes: Sizes) -> None:
        self.work, self.recordings, self.sizes = work, work / "recordings.npz", sizes
        self.journal = Journal(journal)
        self.base = cache(lambda name: open_base(name, sources))
        self.bench = cache(self._bench)
        for folder in ("finetuned", "locks"):
            (work / folder).mkdir(exist_ok=True)

    def _bench(self, model: str, pair: str) -> Bench:
        return Bench(self.base(model), PAIRS[pair].sounds(self.recordings, self.sizes))

    def do(self, job: Job) -> None:
        """Measure what is not in the journal yet, unless another process is at it."""
        with claimed(self.work / "locks" / job.name) as free:
            if not free:
                return
            self.journal.read()
            points = [(steps, alpha) for steps, alpha in job.points if not self.known(job, steps, alpha)]
            if not points:
                return
            states = {} if job.recipe == BASE else self.trained(job)
            for steps, alpha in points:
                self.measure(job, states.get(steps or max(states, default=0)), steps, alpha)

    def known(self, job: Job, steps: int | None, alpha: float) -> bool:
        return self.journal.find(**job.key, steps=steps, alpha=alpha) is not None

    def trained(self, job: Job) -> dict[int, State]:
        """A fine-tune's encoder after each number of steps, made if it is not there."""
        path = self.work / "finetuned" / f"{job.name}.safetensors"
        if not path.exists():
            print(f"fine-tuning {job.name}", flush=True)
            lessons = PAIRS[job.pair].lessons(self.recordings)
            states, _ = finetune(self.base(job.model), lessons, job.how, seed=job.seed)
            part = path.with_suffix(".part")
            save_file({f"{steps}.{name}": t for steps, state in states.items() for name, t in state.items()}, part)
            part.replace(path)
        states: dict[int, State] = {}
        for name, tensor in load_file(path).items():
            steps, _, own = name.partition(".")
            states.setdefault(int(steps), {})[own] = tensor
        return states

    def measure(self, job: Job, state: State | None, steps: int | None, alpha: float) -> None:
        """One point, into the journal."""
        started = time.process_time()
        bench = self.bench(job.model, job.pair)
        found, questions = bench.measure(state, alpha), bench.questions()
        accuracies = {}
        for name, counts in found.items():
            task, probe = name.split("/")
            accuracies[name] = round(float(counts.sum() / questions[task].sum() / PROBES[probe]), 4)
        asked = {"questions": {task: pack(counts) for task, counts in questions.items()}} if job.recipe == BASE else {}
        figures = {"seconds": round(time.process_time() - started), "accuracy": accuracies, **asked}
        right = {name: pack(counts) for name, counts in found.items()}
        self.journal.add(**job.key, steps=steps, alpha=alpha, **figures, right=right)
        print(accuracies, flush=True)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process may do what has this lock; a process that ends, however it does, gives it back."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for everything that is made")
    parser.add_argument("--sources", type=Path, help="folder that fetch.sh filled; fetched if not there")
    parser.add_argument("--quick", action="store_true", help="one fine-tune, two alphas, smaller tests")
    parser.add_argument("--journal", type=Path, help="file of figures to go on with, such as the committed one")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    os.umask(0o022)
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    args.work.mkdir(parents=True, exist_ok=True)
    sources = args.sources or args.work / "sources"
    if not (args.work / "recordings.npz").exists():
        if not sources.exists():
            subprocess.run(["sh", HERE.parent / "sources/fetch.sh", sources], check=True)
        prepare(sources / "speech", args.work / "recordings.npz")
    journal = args.journal or args.work / ("quick.jsonl" if args.quick else "results.jsonl")
    laboratory = Laboratory(args.work, sources, journal, QUICK if args.quick else Sizes())
    for job in plan.QUICK if args.quick else plan.FULL:
        laboratory.do(job)
    laboratory.journal.read()  # what others measured meanwhile
    raise SystemExit(report.show(laboratory.journal.records))


if __name__ == "__main__":
    main()
