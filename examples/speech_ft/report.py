"""What the measurements say: the tables, the claims, and, on demand, the figure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.speech_ft.measure import PROBES
from examples.speech_ft.plan import BASE, LARGER, TINY, Point
from examples.speech_ft.results import Estimate, Results, Run, State, base_of
from examples.speech_ft.tasks import PAIRS

HERE = Path(__file__).parent
RESULTS, QUICK = HERE / "results.jsonl", HERE / "quick.jsonl"
NAMES = {"ws": "weighted sum", "ridge": "all layers, ridge", "last": "last layer, ridge"}
TASKS = {"phones": "phones", "speaker": "who speaks", "language": "language"}


TUNED: Point = (None, 1.0)
MERGED: Point = (None, 0.25)


class Claim(NamedTuple):
    """That one encoder is above (sign 1), or below (-1), another at a task: the whole interval is."""

    run: Run
    name: str
    """Task and probe."""
    left: Point
    right: Point | None
    """None: the base."""
    sign: int

    def __str__(self) -> str:
        task, probe = self.name.split("/")
        side = "above" if self.sign > 0 else "below"
        return f"{label(self.run)}: {TASKS[task]} by `{probe}`, {called(self.left)} {side} {called(self.right)}"


TASK_EFFECTS = ((TUNED, None, 1), (MERGED, None, 1))
UNSEEN_EFFECTS = ((TUNED, None, -1), (MERGED, TUNED, 1))


def effect(run: Run, unseen: str, probe: str) -> list[Claim]:
    """What fine-tuning gains and costs, and that the merge keeps some of the one and wins back some of the other."""
    task = PAIRS[run.pair].task
    return [
        *(Claim(run, f"{task}/{probe}", *sides) for sides in TASK_EFFECTS),
        *(Claim(run, f"{unseen}/{probe}", *sides) for sides in UNSEEN_EFFECTS),
    ]


A, B, LARGE = Run(TINY, "A", "hot"), Run(TINY, "B", "hot"), Run(LARGER, "A", "hot")
STAGE1 = Run(TINY, "A", "stage 1")
ALL_LAYERS = ("ws", "ridge")
WAYS = ((A, "speaker"), (B, "phones"), (LARGE, "speaker"), (STAGE1, "speaker"))
EFFECTS = [claim for run, unseen in WAYS for probe in ALL_LAYERS for claim in effect(run, unseen, probe)]
BEYOND = [Claim(run, f"{unseen}/{probe}", MERGED, None, 1) for run, unseen in WAYS for probe in ALL_LAYERS]
LANGUAGE = [Claim(run, f"language/{probe}", MERGED, TUNED, 1) for run in (A, LARGE) for probe in ALL_LAYERS]
CLAIMS = [*EFFECTS, *BEYOND, *LANGUAGE]
NOT_ASSERTED = {
    Claim(LARGE, "speaker/ridge", TUNED, None, -1),
    *(Claim(STAGE1, f"speaker/{probe}", *sides) for probe in ALL_LAYERS for sides in UNSEEN_EFFECTS),
    *(claim for claim in BEYOND if (claim.run, claim.name) != (LARGE, "speaker/ridge")),
    *LANGUAGE,
}
"""Claims that the committed run does not bear out, or hardly: told all the same."""


def state_label(state: State) -> str:
    return BASE if state.run.recipe == BASE else f"{state.run.recipe}, {called((state.steps, state.alpha))}"


def called(point: Point | None) -> str:
    """A state of a run in words."""
    if point is None:
        return "base"
    steps, alpha = point
    stopped = "" if steps is None else f", stopped at step {steps}"
    return f"merged at {alpha:g}" if alpha < 1 else "fine-tuned" + stopped


def runs(results: Results) -> list[Run]:
    """All but the bases."""
    return list(dict.fromkeys(state.run for state in results.states if state.run.recipe != BASE))


def tasks_of(run: Run) -> tuple[str, ...]:
    return (PAIRS[run.pair].task, *PAIRS[run.pair].unseen)


def rows(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *cells))


def label(run: Run) -> str:
    return f"{run.model}, {run.pair}, {run.recipe}"


def headline(results: Results) -> str:
    """Of each run, task and probe: what fine-tuning does, and the merge at 0.25 beside the base and the fine-tune."""
    lines = []
    for run in runs(results):
        merged, tuned, base = State(run, *MERGED), State(run, *TUNED), base_of(run)
        if not results.seeds(merged):
            continue
        for name in (f"{task}/{probe}" for task in tasks_of(run) for probe in PROBES):
            task, probe = name.split("/")
            unseen = "" if task == PAIRS[run.pair].task else ", unseen"
            found = [
                str(results.difference(left, right, name))
                for left, right in ((tuned, base), (merged, base), (merged, tuned))
            ]
            seeds = len(results.seeds(merged))
            at_base = f"{results.accuracy(base, name):.3f}"
            lines += [[f"{label(run)} ({seeds})", TASKS[task] + unseen, probe, at_base, *found]]
    columns = ["base", "fine-tuned minus base", "merged minus base", "merged minus fine-tuned"]
    return rows(["run (seeds)", "task", "probe", *columns], lines)


def accuracies(results: Results, model: str, pair: str) -> str:
    """Of everything that was measured with one model on one pair: the accuracies, by task and probe."""
    mine = [state for state in results.states if (state.run.model, state.run.pair) == (model, pair)]
    order = list(dict.fromkeys(state.run for state in mine))
    mine.sort(key=lambda state: (order.index(state.run), state.steps is None, state.steps or 0, state.alpha))
    lines = [
        [state_label(state), str(len(results.seeds(state)))]
        + [f"{results.accuracy(state, f'{task}/{probe}'):.3f}" for task in tasks_of(state.run) for probe in PROBES]
        for state in mine
    ]
    columns = [f"{TASKS[task]}: {probe}" for task in tasks_of(mine[0].run) for probe in PROBES]
    return rows(["encoder", "seeds", *columns], lines)


def equal_cost(results: Results, run: Run) -> str:
    """What costs no more than the merge at 0.25: that, minus each of these, by task and probe."""
    merged = State(run, *MERGED)
    others = [
        state
        for state in results.states
        if (state.run.model, state.run.pair) == (run.model, run.pair)
        and state.run.recipe != BASE
        and state.alpha == 1
        and state != State(run, *TUNED)
    ]
    lines = [
        [state_label(state), str(results.difference(merged, state, f"{tasks_of(run)[0]}/ws").seeds)]
        + [
            str(results.difference(merged, state, f"{task}/{probe}"))
            for task in tasks_of(run)
            for probe in ("ws", "ridge")
        ]
        for state in others
    ]
    columns = [f"{TASKS[task]}: {probe}" for task in tasks_of(run) for probe in ("ws", "ridge")]
    return rows(["merge at 0.25 minus", "seeds", *columns], lines)


def measured(results: Results) -> list[Claim]:
    """The claims that a run can be asked about: those of more than one seed."""
    return [claim for claim in CLAIMS if len(results.seeds(State(claim.run, *claim.left))) > 1]


def judge(results: Results, claim: Claim) -> tuple[bool, Estimate]:
    """Whether a claim holds, and the difference that it is about."""
    left = State(claim.run, *claim.left)
    right = base_of(claim.run) if claim.right is None else State(claim.run, *claim.right)
    found = results.difference(left, right, claim.name)
    return (found.low if claim.sign > 0 else -found.high) > 0, found


def claims(results: Results, made: Sequence[Claim]) -> tuple[bool, list[str]]:
    """Whether all hold that are asserted, and each in words."""
    told, good = [], True
    for claim in made:
        holds, found = judge(results, claim)
        excused = claim in NOT_ASSERTED
        good &= holds or excused
        verdict = "holds" if holds else "not shown" if excused else "FAILS"
        told.append(f"{verdict}: {claim}: {found}")
    return good, told


def tables(results: Results) -> dict[str, str]:
    """All tables, by their titles."""
    found = {"headline": headline(results)}
    for model, pair in dict.fromkeys((run.model, run.pair) for run in runs(results)):
        found[f"{model}, pair {pair}"] = accuracies(results, model, pair)
    found |= {f"equal cost, {label(run)}": equal_cost(results, run) for run in runs(results) if run == A}
    return found


def show(records: Sequence[dict[str, Any]]) -> int:
    """Print it all; 1 if a claim fails that is asserted."""
    results = Results(records)
    good, told = claims(results, measured(results))
    for title, table in tables(results).items():
        print(f"{title}\n\n{table}\n")
    print("\n".join(told))
    return int(not good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="file to draw into")
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="the journal of a run")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.results.read_text().splitlines()]
    if args.figure:
        from examples.speech_ft.figure import draw

        draw(Results(records), args.figure)
    raise SystemExit(show(records))


if __name__ == "__main__":
    main()
