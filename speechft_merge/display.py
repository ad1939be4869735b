"""Tells results to people, as text or HTML: tables and sentences, and the table of layers that several share."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.foreign import clean
from speechft_merge.record.layers import drift_cell
from speechft_merge.text import fit, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from speechft_merge.record.layers import LayerRow


_GAP = 3
"""Columns between two of a table."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under titles; columns after the first are aligned right if they hold numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    """How many of the first columns tell the rows apart."""

    def draw(self, columns: int | None = None, *, bold: bool = False) -> str:
        """Return the table as lines of text that fit, without a break within a word or a number.

        Where lines broken between words do not suffice, columns of numbers go on below, beside the other columns again;
        a table in which that does not help either becomes a list. Columns without content are left out.

        Args:
            columns: of the terminal; None for whole lines.
            bold: whether titles are bold there.
        """
        told = [i for i, title in enumerate(self.titles) if i == 0 or any(row[i] for row in self.rows)]
        table = self._part(told)
        widths = table._widths()
        if columns is None:
            return table._drawn([high for _, high in widths], bold)
        parts = [*table._parts(columns, [low for low, _ in widths])]
        if not parts:
            return "\n".join(table._listed(columns))
        drawn = (table._part(part)._drawn(_shared([widths[i] for i in part], columns), bold) for part in parts)
        return "\n\n".join(drawn)

    def as_html(self, caption: str = "") -> str:
        """Return the table as HTML, all of its text escaped."""
        said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in self.titles)
        body = "".join(map(_html_row, self.rows))
        return f"<table>{said}<thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table>"

    def _part(self, columns: Sequence[int]) -> Table:
        rows = [[fit(row[i]) for i in columns] for row in self.rows]
        return Table([self.titles[i] for i in columns], rows, self.keys)

    def _is_numeric(self, column: int) -> bool:
        return column > 0 and all(row[column][:1] in "0123456789-+." for row in self.rows)

    def _widths(self) -> list[tuple[int, int]]:
        """Return the least and the most columns that each column takes; only text and titles can be broken."""
        from rich.cells import cell_len

        found = []
        for i, title in enumerate(self.titles):
            texts = [row[i] for row in self.rows]
            words = [*title.split(), *(texts if self._is_numeric(i) else " ".join(texts).split())]
            found.append((max(map(cell_len, words), default=0), max(map(cell_len, [title, *texts]))))
        return found

    def _drawn(self, widths: Sequence[int], bold: bool) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        console = Console(
            highlight=False, markup=False, emoji=False, width=_total(widths), force_terminal=bold, force_jupyter=False
        )
        drawn = Drawn(box=box.SIMPLE, pad_edge=False, show_edge=False)
        for i, (title, width) in enumerate(zip(self.titles, widths, strict=True)):
            drawn.add_column(title, justify="right" if self._is_numeric(i) else "left", width=width)
        for row in self.rows:
            drawn.add_row(*map(Text, row))
        with console.capture() as captured:
            console.print(drawn)
        return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines())

    def _parts(self, columns: int, least: Sequence[int]) -> Iterator[list[int]]:
        """Yield the columns of each table that fits, keys and text in all of them; none where that is too wide."""
        numbers = [i for i in range(self.keys, len(least)) if self._is_numeric(i)]
        text = [i for i in range(len(least)) if i not in numbers]
        if _total(least[i] for i in text) + max((_GAP + least[i] for i in numbers), default=0) > columns:
            return
        part = [*text]
        for i in numbers:
            if _total(least[j] for j in (*part, i)) > columns:
                yield sorted(part)
                part = [*text]
            part.append(i)
        yield sorted(part)

    def _listed(self, columns: int) -> Iterator[str]:
        """Yield a paragraph for each row: its first cell, and below it the others that are not empty, by title."""
        if len(self.titles) == 2:
            facts = (f"{first}: {second}" for first, second in [self.titles, *self.rows])
            yield from (wrapped(fact, columns, "  ") for fact in facts)
            return
        for first, *others in self.rows:
            yield first
            yield from (
                wrapped(f"  {title}: {cell}", columns, "    ")
                for title, cell in zip(self.titles[1:], others, strict=True)
                if cell
            )


def _html_row(cells: Sequence[str]) -> str:
    head, *others = (html.escape(clean(cell)) for cell in cells)
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>\n'


def _total(widths: Iterable[int]) -> int:
    """Return the columns that a table takes."""
    each = list(widths)
    return sum(each) + _GAP * (len(each) - 1)


def _shared(widths: Sequence[tuple[int, int]], columns: int) -> list[int]:
    """Return the width of each column, the widest ones narrowed until all fit."""
    found = [high for _, high in widths]
    while _total(found) > columns:
        i = max((i for i, (low, _) in enumerate(widths) if found[i] > low), key=found.__getitem__)
        found[i] -= 1
    return found


class Told:
    """A result that can be told to people: base of those that the library returns. Notebooks show it as HTML."""

    __slots__ = ()

    def parts(self, verbose: int = 0) -> Iterator[Table | str]:
        """Yield the tables and sentences, with more of them for each step of `verbose`."""
        raise NotImplementedError

    def summary(self, verbose: int = 0) -> str:
        """Return what the command line prints of it, as text with whole lines."""
        return "\n".join(clean(part) if isinstance(part, str) else part.draw() for part in self.parts(verbose))

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
    """Return `48 interpolated (6 of them identical), 2 left out`."""
    same = counts.get("identical", 0)
    told = {what: f"{count} {what}" for what, count in counts.items() if count and what != "identical"}
    if same and "interpolated" in told:
        told["interpolated"] += f" ({same} of them identical)"
    return ", ".join(told.values())
