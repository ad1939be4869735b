"""What the measurements say: the tables, and the verdict on the rule."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from examples.choosing_alpha.rules import (
    TOLERANCE,
    Case,
    Record,
    Utility,
    balanced,
    best_alpha,
    best_threshold,
    gated,
    less_base,
    pick,
    read_cases,
)
from speechft_merge.similarity.drawing import COLUMN, SETTINGS
from speechft_merge.similarity.lines import STYLES

RESULTS = Path(__file__).with_name("results.jsonl")
RULE, FIXED, BEST = "CKA above a threshold", "alpha 0.25", "best fixed alpha"
UTILITIES: dict[str, Utility] = {"primary": gated, "secondary": balanced}
DRAWS = 10_000

Picks = list[dict[str, int]]
"""Of each case, what each rule takes: indexes of alphas."""


def regrets(cases: Sequence[Case], picks: Picks, utility: Utility) -> dict[str, NDArray[np.float64]]:
    """Of each rule, what it loses to the oracle in each case."""
    values = [utility(case) for case in cases]
    return {
        rule: np.array([max(found) - found[chosen[rule]] for found, chosen in zip(values, picks, strict=True)])
        for rule in picks[0]
    }


def draw_clusters(cases: Sequence[Case], draws: int = DRAWS) -> NDArray[np.float64]:
    """Weights of the cases in bootstrap samples of the pairs of encoder and task: (draws, cases)."""
    pairs = sorted({(case.encoder, case.task) for case in cases})
    counts = np.random.default_rng(0).multinomial(len(pairs), [1 / len(pairs)] * len(pairs), size=draws)
    return counts[:, [pairs.index((case.encoder, case.task)) for case in cases]].astype(float)


def interval(found: NDArray[np.float64]) -> str:
    """The middle 95 %."""
    low, high = np.nanquantile(found, [0.025, 0.975])
    return f"[{low:.3f}, {high:.3f}]"


def means(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the cases in each bootstrap sample."""
    return weights @ values / weights.sum(axis=1)


def table(cases: Sequence[Case], left_out: str) -> str:
    """What each rule takes and what that is worth, in Markdown."""
    found = {name: [pick(case, cases, utility, left_out) for case in cases] for name, utility in UTILITIES.items()}
    lost = {name: regrets(cases, picks, UTILITIES[name]) for name, picks in found.items()}
    weights = draw_clusters(cases)
    lines = [
        f"| leaving out one {left_out} | alpha, mean | own head kept | own task, fresh probe | other tasks "
        "| the same, last layer | gate holds | regret, primary | regret, secondary |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rule in found["primary"][0]:
        chosen = [each[rule] for each in found["primary"]]
        pairs = list(zip(cases, chosen, strict=True))
        cells = [
            rule,
            f"{mean(case.alphas[at] for case, at in pairs):.2f}",
            f"{mean(case.learnt[at] for case, at in pairs):.3f}",
            f"{mean(case.fresh[at] - case.fresh[0] for case, at in pairs):+.3f}",
            f"{mean(case.changes[at] for case, at in pairs):+.3f}",
            f"{mean(less_base(case.last)[at] for case, at in pairs):+.3f}",
            f"{sum(case.holds(at) for case, at in pairs)} of {len(cases)}",
            *(f"{each[rule].mean():.3f} {interval(means(each[rule], weights))}" for each in lost.values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fitted(cases: Sequence[Case], left_out: str) -> str:
    """The thresholds and the fixed alphas that the others gave, in words."""
    told = []
    for name in dict.fromkeys(getattr(case, left_out) for case in cases):
        others = [case for case in cases if getattr(case, left_out) != name]
        alpha = cases[0].alphas[best_alpha(others, gated)]
        told.append(f"without {name} {best_threshold(others, gated):.2f} and {alpha:g}")
    return f"Threshold and best fixed alpha by the primary utility: {'; '.join(told)}."


def told_apart(cases: Sequence[Case]) -> str:
    """How well CKA, and how well alpha, tells the merges within the gate from the others."""
    points = [(case, at) for case in cases for at in range(1, len(case.alphas))]
    inside = np.array([case.holds(at) for case, at in points])
    scores = {
        "CKA": np.array([case.cka[at] for case, at in points]),
        "alpha": np.array([-case.alphas[at] for case, at in points]),
    }
    weights = draw_clusters(cases)[:, [cases.index(case) for case, _ in points]]
    areas, drawn = {}, {}
    for name, score in scores.items():
        wins = (np.sign(score[inside][:, None] - score[~inside][None, :]) + 1) / 2
        areas[name] = wins.mean()
        with np.errstate(invalid="ignore"):  # a sample without either
            both = weights[:, inside].sum(axis=1) * weights[:, ~inside].sum(axis=1)
            drawn[name] = ((weights[:, inside] @ wins) * weights[:, ~inside]).sum(axis=1) / both
    return (
        f"The gate holds at {inside.sum()} of {len(points)} merges. Area under the curve of telling these from the "
        f"others: CKA {areas['CKA']:.3f} {interval(drawn['CKA'])}, alpha {areas['alpha']:.3f} "
        f"{interval(drawn['alpha'])}, difference {interval(drawn['CKA'] - drawn['alpha'])}."
    )


def each_fine_tune(cases: Sequence[Case]) -> str:
    """One row a fine-tune, in Markdown: what the rule and the oracle take, leaving out its encoder."""
    lines = [
        "| encoder | task | seed | CKA at 0.25, 1 | own head at 0, 1 | other tasks at 1 | rule: alpha, own head kept, "
        "other tasks | oracle | at 0.25 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        chosen, learnt, changes = pick(case, cases, gated, "encoder"), case.learnt, case.changes
        quarter = case.alphas.index(0.25)
        cells = [
            *(case.encoder, case.task, str(case.seed)),
            f"{case.cka[quarter]:.2f}, {case.cka[-1]:.2f}",
            f"{case.own[0]:.2f}, {case.own[-1]:.2f}",
            f"{changes[-1]:+.3f}",
            *(
                f"{case.alphas[at]:g}, {learnt[at]:.2f}, {changes[at]:+.3f}"
                for at in (chosen[RULE], chosen["oracle"], quarter)
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(cases: Sequence[Case]) -> tuple[bool, list[str]]:
    """Whether a suggestion may be printed, and the three conditions in words."""
    picks = [pick(case, cases, gated, "encoder") for case in cases]
    lost, weights = regrets(cases, picks, gated), draw_clusters(cases)
    ours, fixed, best = (lost[rule].mean() for rule in (RULE, FIXED, BEST))
    held = mean(case.holds(chosen[RULE]) for case, chosen in zip(cases, picks, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = means(lost[RULE], weights) / means(lost[FIXED], weights)
    claims = [
        (
            f"mean regret {ours:.3f} is at most half of alpha 0.25's {fixed:.3f} (ratio {ours / fixed:.2f} "
            f"{interval(ratios)})",
            ours <= fixed / 2,
        ),
        (f"the other tasks stay within {TOLERANCE} of the base in {held:.0%} of the fine-tunes, at least 90 %",
         held >= 0.9),
        (f"mean regret is below the best fixed alpha's {best:.3f} (difference {ours - best:+.3f} "
         f"{interval(means(lost[RULE] - lost[BEST], weights))})",
         ours < best),
    ]  # fmt: skip
    return all(holds for _, holds in claims), [("holds: " if holds else "FAILS: ") + text for text, holds in claims]


def results(cases: Sequence[Case]) -> str:
    """All tables, as the README has them."""
    parts = [part for left_out in ("encoder", "task") for part in (table(cases, left_out), fitted(cases, left_out))]
    conditions = "\n".join(f"* {line}" for line in verdict(cases)[1])
    return "\n\n".join([conditions, *parts, told_apart(cases), each_fine_tune(cases)])


def draw(cases: Sequence[Case], path: Path) -> None:
    """What the other tasks lose, against alpha and against CKA: a line a fine-tune."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    encoders = dict(zip(dict.fromkeys(case.encoder for case in cases), STYLES.values(), strict=True))
    with matplotlib.rc_context(SETTINGS):
        figure, axes = pyplot.subplots(1, 2, figsize=(2 * COLUMN, 3), sharey=True, layout="constrained")
        for axis, (name, label) in zip(axes, {"alphas": "alpha", "cka": "CKA to the base"}.items(), strict=True):
            for case in cases:
                look = {"linewidth": 0.8, "markersize": 2.5, **encoders[case.encoder]}
                axis.plot(getattr(case, name), case.changes, **look, label=case.encoder)
            axis.axhline(-TOLERANCE, color="0.5", linestyle=":", label=f"gate: {-TOLERANCE:g}")
            axis.set_xlabel(label)
        axes[1].invert_xaxis()
        axes[0].set_ylabel("accuracy on other tasks, less the base's")
        shown = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(shown.values(), shown, frameon=False, loc="outside upper center", ncols=4)
        figure.savefig(path, dpi=200)


def show(records: Sequence[Record]) -> int:
    """Print it all; 1 if the rule may not be printed as a suggestion."""
    cases = read_cases(records)
    print(results(cases))
    return int(not verdict(cases)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="file to draw into")
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="the journal of a run")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.results.read_text().splitlines()]
    if args.figure:
        draw(read_cases(records), args.figure)
    raise SystemExit(show(records))


if __name__ == "__main__":
    main()
