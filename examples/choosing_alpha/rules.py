"""Choosing alpha: what a fine-tune's merges are worth, and what a rule takes that was fitted to other fine-tunes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

Record = dict[str, Any]

TASKS = ("speaker", "language", "phones")
TOLERANCE = 0.01
"""How far below the base the other tasks may be, on average."""
THRESHOLDS = [number / 100 for number in range(101)]


@dataclass(frozen=True)
class Case:
    """One fine-tune and its merges, by alpha."""

    encoder: str
    task: str
    seed: int
    alphas: tuple[float, ...]
    """Ascending, from 0 to 1."""
    cka: tuple[float, ...]
    """To the base."""
    own: tuple[float, ...]
    """Accuracy of the fine-tune's own head."""
    others: tuple[tuple[float, ...], ...]
    """Of each other task, accuracy by fresh probes on all layers."""
    last: tuple[tuple[float, ...], ...]
    """As `others`, on the last layer alone; no rule minds it."""
    fresh: tuple[float, ...]
    """Accuracy on its own task by a fresh probe on all layers; no rule minds it."""

    @property
    def learnt(self) -> list[float]:
        """Accuracy of the own head: 0 at the base, 1 at the fine-tune."""
        return [(value - self.own[0]) / (self.own[-1] - self.own[0]) for value in self.own]

    @property
    def changes(self) -> list[float]:
        """Accuracy on the other tasks less the base's, on average."""
        return less_base(self.others)

    @property
    def kept(self) -> list[float]:
        """Share of the base's accuracy on the other tasks, on average."""
        return [
            mean(each) for each in zip(*([value / found[0] for value in found] for found in self.others), strict=True)
        ]

    def holds(self, at: int) -> bool:
        """Whether the gate does at the alpha of this index."""
        return self.changes[at] >= -TOLERANCE


def less_base(found: Sequence[Sequence[float]]) -> list[float]:
    """Accuracies of several tasks by alpha, less those at alpha 0, on average over the tasks."""
    return [mean(each) for each in zip(*([value - values[0] for value in values] for values in found), strict=True)]


def read_cases(records: Sequence[Record]) -> list[Case]:
    """The fine-tunes of a journal that were measured up to alpha 1."""
    found: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        found.setdefault((record["encoder"], record["task"], record["seed"]), []).append(record)
    cases = []
    for (encoder, task, seed), rows in found.items():
        rows = sorted(rows, key=lambda row: row["alpha"])
        if rows[-1]["alpha"] != 1:
            continue
        alphas, cka, own, fresh = (tuple(row[name] for row in rows) for name in ("alpha", "cka", "own", f"{task}_all"))
        others, last = (
            tuple(tuple(row[f"{other}_{kind}"] for row in rows) for other in TASKS if other != task)
            for kind in ("all", "last")
        )
        cases.append(Case(encoder, task, seed, alphas, cka, own, others, last, fresh))
    return cases


Utility = Callable[[Case], list[float]]


def gated(case: Case) -> list[float]:
    """The primary utility of each alpha: what is learnt, if the gate holds, else nothing."""
    return [learnt if case.holds(at) else 0.0 for at, learnt in enumerate(case.learnt)]


def balanced(case: Case) -> list[float]:
    """The secondary one: half what is learnt, half what is kept."""
    return [(learnt + kept) / 2 for learnt, kept in zip(case.learnt, case.kept, strict=True)]


def above(case: Case, threshold: float) -> int:
    """The index of the largest alpha up to which CKA stays at the threshold or above."""
    at = 0
    while at + 1 < len(case.cka) and case.cka[at + 1] >= threshold:
        at += 1
    return at


def best_threshold(cases: Sequence[Case], utility: Utility) -> float:
    """The threshold with the greatest mean utility; of equal ones the highest."""
    values = [utility(case) for case in cases]

    def worth(threshold: float) -> float:
        return mean(found[above(case, threshold)] for case, found in zip(cases, values, strict=True))

    return max(reversed(THRESHOLDS), key=worth)


def best_alpha(cases: Sequence[Case], utility: Utility) -> int:
    """The index of the alpha with the greatest mean utility; of equal ones the smallest."""
    means = [mean(values) for values in zip(*map(utility, cases), strict=True)]
    return means.index(max(means))


def oracle(case: Case, utility: Utility) -> int:
    """The index of the best alpha."""
    values = utility(case)
    return values.index(max(values))


def pick(case: Case, cases: Sequence[Case], utility: Utility, left_out: str) -> dict[str, int]:
    """What each rule takes for a case, fitted where need be to the cases with another `left_out`: indexes of alphas."""
    others = [other for other in cases if getattr(other, left_out) != getattr(case, left_out)]
    fixed = {f"alpha {alpha:g}": case.alphas.index(alpha) for alpha in (0.1, 0.25, 0.5)}
    return {
        "CKA above a threshold": above(case, best_threshold(others, utility)),
        **fixed,
        "best fixed alpha": best_alpha(others, utility),
        "oracle": oracle(case, utility),
    }
