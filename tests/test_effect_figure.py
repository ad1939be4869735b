"""The figure at the top of the README: it shows what was measured."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from examples.effect import draw_accuracies, read_accuracies

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_figure_has_the_accuracies_of_the_table() -> None:
    found = read_accuracies((EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert found == {
        0.0: (0.443, 0.586), 0.25: (0.740, 0.585), 0.5: (0.827, 0.559), 0.75: (0.847, 0.494), 1.0: (0.853, 0.417),
    }  # fmt: skip
    axes = Figure().subplots()
    draw_accuracies(axes, found)
    assert [dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines[1:]] == [
        {alpha: both[task] for alpha, both in found.items()} for task in (0, 1)
    ]
    assert {text.get_text() for text in axes.texts} == {"0.443", "0.740", "0.853", "0.586", "0.585", "0.417"}
