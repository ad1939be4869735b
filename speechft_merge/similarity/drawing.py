"""Makes files of figures in one style: PNG, SVG, PDF, or a page that has the figure, its table and its words."""

from __future__ import annotations

import html
import io
import logging
from typing import TYPE_CHECKING, Any

from speechft_merge.packages import needs_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SETTINGS = {  # a column of a two-column paper is 8.9 cm wide; its captions have 8 points
    "font.size": 8, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 3.5, "legend.fontsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "speechft-merge",
    "pdf.fonttype": 42,
}  # fmt: skip
COLUMN = 3.5
"""Inches."""
_STYLE = "body{font:15px sans-serif;max-width:46em;margin:2em auto}svg{width:100%;height:auto}td,th{padding:.2em 1em}"


def draw(kind: str, size: tuple[float, float], fill: Callable[[Any], None], page: Callable[[str], bytes]) -> bytes:
    """Return a file's bytes, without the date: equal figures, equal files.

    Args:
        kind: one of `request.FIGURES`.
        size: width and height in inches.
        fill: draws into matplotlib's figure.
        page: makes a page around an SVG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if kind == ".html":
        svg = draw(".svg", size, fill, page).decode()
        return page(svg[svg.index("<svg") :])
    # it says where it keeps its fonts, if the home directory cannot be written
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with needs_extra("matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        fill(figure)
        content = io.BytesIO()
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(content, format=kind.lstrip("."), dpi=300, metadata=metadata)
    return content.getvalue()


def make_page(
    title: str,
    models: Mapping[str, str],
    svg: str,
    table: Sequence[Sequence[str]],
    words: Sequence[str],
    notes: Sequence[str],
) -> bytes:
    """Return one self-contained page.

    Args:
        title: its heading.
        models: role -> reference.
        svg: the figure.
        table: titles, and rows.
        words: paragraphs under the figure.
        notes: paragraphs under the table.
    """
    heads, *rows = table
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    roles = "".join(f"<li>{role}: {html.escape(name)}</li>" for role, name in models.items())
    above, below = ("".join(f"<p>{html.escape(one)}</p>" for one in paragraphs) for paragraphs in (words, notes))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><ul>{roles}</ul>{svg}{above}<table><tr>{titles}</tr>{cells}</table>{below}</html>\n"
    ).encode()
