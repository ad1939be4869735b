"""The figure: what is gained on the task and what is lost on the unseen one, by merges and by what costs as much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.speech_ft.plan import BASE, TINY
from examples.speech_ft.report import NAMES, TASKS, TUNED
from examples.speech_ft.results import Results, Run, State, base_of
from examples.speech_ft.tasks import PAIRS

PANELS = (("A", "speaker"), ("B", "phones"))
"""Pair and unseen task, a row each; a column each of `PROBES`."""
PROBES = ("ws", "ridge", "last")
STYLES = {
    "merges": {"color": "#0072B2", "marker": "o", "ls": "-"},
    "stopped": {"color": "#D55E00", "marker": "s", "ls": "--"},
    "gentle": {"color": "#009E73", "marker": "^"},
    "short": {"color": "#CC79A7", "marker": "v"},
    "L2": {"color": "#E69F00", "marker": "D"},
    "top": {"color": "#56B4E9", "marker": "P"},
    "stage 1": {"color": "#000000", "marker": "X"},
}
"""Colours of Okabe and Ito, and a marker each for those who see none."""
LABELS = {
    "merges": "merges of the hot fine-tune, by alpha",
    "stopped": "the hot run, stopped earlier, by step",
    "gentle": "a gentler rate, merged at 0.25 and not",
    "short": "a shorter run",
    "L2": "L2 to the base",
    "top": "top layers only",
    "stage 1": "stage 1, merged at 0.25 and not",
}


def groups(results: Results, pair: str) -> dict[str, list[State]]:
    """What is drawn alike: the states, in the order in which a line passes them."""
    hot = Run(TINY, pair, "hot")
    mine = sorted(state for state in results.states if state.run == hot and state.steps is None)
    stopped = sorted(state for state in results.states if state.run == hot and state.steps is not None)
    found = {"merges": [base_of(hot), *mine]}
    if stopped:
        found["stopped"] = [base_of(hot), *stopped, State(hot, *TUNED)]
    for recipe in STYLES:
        others = sorted(state for state in results.states if state.run == hot._replace(recipe=recipe))
        if others:
            found[recipe] = others if len(others) == 1 else [base_of(hot), *others]
    return found


def panel(axis: Any, results: Results, pair: str, unseen: str, probe: str) -> None:
    """One pair by one probe; error bars are intervals of 95 %."""
    for name, states in groups(results, pair).items():
        points = [
            [results.difference(state, base_of(state.run), f"{task}/{probe}") for task in (PAIRS[pair].task, unseen)]
            for state in states
        ]
        across, along = zip(*points, strict=True)
        errors = [[[p.value - p.low for p in side], [p.high - p.value for p in side]] for side in (across, along)]
        style = {"ls": ":", "ms": 6, "lw": 1.3, "elinewidth": 0.7, "label": LABELS[name]} | STYLES[name]
        x, y = ([point.value for point in side] for side in (across, along))
        axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], **style)
        for place, state in zip(zip(x, y, strict=True), states, strict=True):
            told = state.steps if name == "stopped" else f"{state.alpha:g}" if name == "merges" else None
            if told and state.run.recipe != BASE:
                offset = (4, 4) if name == "merges" else (-4, -10)
                colour = STYLES[name]["color"]
                axis.annotate(told, place, offset, textcoords="offset points", fontsize=6.5, color=colour)
    for line in (axis.axhline, axis.axvline):
        line(0, color="0.6", lw=0.8, zorder=0)


def draw(results: Results, path: Path) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(pair, unseen) for pair, unseen in PANELS if results.seeds(State(Run(TINY, pair, "hot"), None, 1.0))]
    figure, axes = pyplot.subplots(len(shown), 3, figsize=(10, 3.3 * len(shown) + 0.6), squeeze=False)
    for row, (pair, unseen) in zip(axes, shown, strict=True):
        for axis, probe in zip(row, PROBES, strict=True):
            panel(axis, results, pair, unseen, probe)
            axis.set_title(f"{pair}, {NAMES[probe]}", fontsize=9)
            axis.set_xlabel(f"{TASKS[PAIRS[pair].task]} (task), less base", fontsize=8)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(f"{TASKS[unseen]} (unseen), less base", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=110)
