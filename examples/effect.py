"""Draw what merging does to the small pair: accuracy on two tasks over alpha, and CKA by layer.

    python -m examples.effect

The accuracies are those of the table in `examples/README.md`, which `examples/small_hubert/check.py` printed; CKA is
measured again on the built-in probe, in some seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from speechft_merge import compare
from speechft_merge.similarity.drawing import SETTINGS
from speechft_merge.similarity.lines import STYLES

HERE = Path(__file__).parent
WIDTH = 1600
"""Pixels: twice what a page shows, for sharp screens."""
CAPTION = (
    "Left: examples/pair, a HuBERT of 3 million parameters fine-tuned on five voices; one seed, 300 crops and 13,244 "
    "frames held out.\nRight: the same pair on the built-in probe, 24 clips of 6 groups; bands: 95 % intervals."
)
ABOVE, BELOW = 6, -12
"""Points from a marker to the figure that is written at it."""
TASKS = {
    "its task: who speaks": ("base_finetuned", {0.0: (BELOW, "left"), 0.25: (ABOVE, "right"), 1.0: (ABOVE, "right")}),
    "another task: phones": ("base_merged", {0.0: (ABOVE, "left"), 0.25: (BELOW, "left"), 1.0: (BELOW, "right")}),
}
"""Label -> its style, and alpha -> where its figure is written."""


def read_accuracies(table: str) -> dict[float, tuple[float, float]]:
    """Return alpha -> accuracies on voices and phones, from a table that calls its ends base and fine-tuned."""
    ends = {"base": 0.0, "fine-tuned": 1.0}
    row = re.compile(r"^\| (base|fine-tuned|merged, alpha ([\d.]+))[^|]*\| ([\d.]+) \| ([\d.]+) \|", re.MULTILINE)
    return {
        float(alpha) if alpha else ends[name]: (float(voices), float(phones))
        for name, alpha, voices, phones in row.findall(table)
    }


def draw_accuracies(axes: Any, found: dict[float, tuple[float, float]]) -> None:
    """Draw both tasks over alpha, with the merge that Speech-FT takes marked."""
    axes.axvline(0.25, color="0.85", linewidth=7, zorder=0)
    for which, (label, (style, places)) in enumerate(TASKS.items()):
        values = {alpha: both[which] for alpha, both in found.items()}
        axes.plot(values.keys(), values.values(), label=label, **STYLES[style])
        for alpha, (up, aligned) in places.items():
            look = {"textcoords": "offset points", "ha": aligned, "color": STYLES[style]["color"]}
            axes.annotate(f"{values[alpha]:.3f}", (alpha, values[alpha]), (0, up), **look)
    axes.set(xlabel="alpha", ylabel="accuracy", ylim=(0, 1), title="What the model can do")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0\nbase", "0.25\nmerged", "0.5", "0.75", "1\nfine-tuned"])
    axes.legend(frameon=False, loc="lower left")


def draw(path: Path) -> None:
    """Write the figure."""
    import matplotlib
    from matplotlib.figure import Figure

    report = compare(str(HERE / "pair/base"), str(HERE / "pair/finetuned"))
    with matplotlib.rc_context(SETTINGS | {"font.size": 9, "legend.fontsize": 8.5, "axes.titlesize": 10}):
        figure = Figure(figsize=(8, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_accuracies(left, read_accuracies((HERE / "README.md").read_text(encoding="utf-8")))
        report.plot(right)
        right.set(title="How alike the features are, merged at 0.25")
        right.legend(frameon=False, loc="lower left")
        figure.supxlabel(CAPTION, fontsize=7.5, color="0.25", x=0.01, ha="left")
        figure.draw_without_rendering()
        figure.savefig(path, dpi=WIDTH / 8, metadata={"Title": "The effect of merging", "Description": CAPTION})


if __name__ == "__main__":
    draw(HERE / "effect.png")
