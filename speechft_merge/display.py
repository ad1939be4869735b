"""Tells results to people, as text or HTML: tables and sentences, and the table of layers that several share."""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.foreign import clean
from speechft_merge.record.layers import drift_cell
from speechft_merge.text import fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from speechft_merge.record.layers import LayerRow


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under titles; columns after the first are aligned right if they hold numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def draw(self) -> str:
        """Return the table as lines of text, fit to the terminal."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        width = None if sys.stdout.isatty() else 200  # a job's log has no width; 80 columns would fold every line
        console = Console(highlight=False, markup=False, emoji=False, width=width, force_terminal=sys.stdout.isatty())
        drawn = Drawn(box=box.SIMPLE, pad_edge=False, show_edge=False)
        for i, title in enumerate(self.titles):
            numeric = i > 0 and all(row[i][:1] in "0123456789-+." for row in self.rows)
            drawn.add_column(title, justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*(Text(clean(cell)) for cell in row))
        with console.capture() as captured:
            console.print(drawn)
        return captured.get().rstrip("\n")

    def as_html(self) -> str:
        """Return the table as HTML, all of its text escaped."""
        heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in self.titles)
        rows = ("".join(f"<td>{html.escape(clean(cell))}</td>" for cell in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


class Told:
    """A result that can be told to people: base of those that the library returns. Notebooks show it as HTML."""

    __slots__ = ()

    def parts(self, verbose: int = 0) -> Iterator[Table | str]:
        """Yield the tables and sentences, with more of them for each step of `verbose`."""
        raise NotImplementedError

    def summary(self, verbose: int = 0) -> str:
        """Return what the command line prints of it, as text."""
        return "\n".join(part if isinstance(part, str) else part.draw() for part in self.parts(verbose))

    def _repr_html_(self) -> str:
        shown = (f"<p>{html.escape(clean(p))}</p>" if isinstance(p, str) else p.as_html() for p in self.parts())
        return "".join(shown)


def layer_parts(rows: Sequence[LayerRow]) -> Iterator[Table | str]:
    """Yield the table, without columns that say nothing, and under it why tensors were not interpolated."""
    columns: dict[str, list[str]] = {
        "layer": [row.key.label for row in rows],
        "alpha": [row.alpha_cell for row in rows],
        "drift": [drift_cell(row.drift) for row in rows],
        "interpolated": [str(row.interpolated) for row in rows],
        "identical": [str(row.identical or 0) for row in rows],
        "copied": [str(row.copied) for row in rows],
        "left out": [str(row.left_out) for row in rows],
        "parameters": [f"{row.parameters:,}" for row in rows],
    }
    told = {title: cells for title, cells in columns.items() if any(cell not in ("-", "0") for cell in cells)}
    yield Table(list(told), list(zip(*told.values(), strict=True)))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.reasons:
            reasons.setdefault(reason, []).append(row.key.label)
    yield from (fit(f"{', '.join(labels)}: {reason}") for reason, labels in reasons.items())


def in_words(counts: Mapping[str, int]) -> str:
    """Return `48 interpolated, 2 left out`."""
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
