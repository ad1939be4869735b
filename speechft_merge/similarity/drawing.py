"""Makes files of figures in one style: PNG, SVG, PDF, or a page that has the figure, its table and its words."""

from __future__ import annotations

import html
import io
import logging
import textwrap
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from speechft_merge.display import Table
from speechft_merge.foreign import clean
from speechft_merge.packages import needs_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SETTINGS = {  # a column of a two-column paper is 8.9 cm wide; its captions have 8 points
    "font.size": 8, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 3.5, "legend.fontsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.useoffset": False, "svg.fonttype": "none",
    "svg.hashsalt": "speechft-merge", "pdf.fonttype": 42,
}  # fmt: skip
COLUMN = 3.5
"""Inches."""
SMALL = 7
"""Points of a caption; about 17 of its letters are an inch."""
_METADATA: dict[str, dict[str, str | None]] = {  # kind -> what replaces the keys Title and Description, and dates
    ".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None},
}  # fmt: skip
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:46em;margin:2em auto;padding:0 1em;overflow-wrap:anywhere}
figure,.table{margin:1em 0;overflow-x:auto}
svg{display:block;width:100%;height:auto;background:#fff}
figcaption,.notes{font-size:.875em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:bold}
td,th{padding:.2em .8em .2em 0;text-align:left;white-space:nowrap;border-bottom:1px solid #8886}
tbody th{font-weight:normal}
@media print{body{max-width:none;margin:0}figure,tr{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Drawing:
    """A figure, and what a page says around it."""

    title: str
    """In a few words; the heading of the page."""
    description: str
    """What the figure shows, for those who do not see it."""
    caption: str
    """What it was made of, drawn below it."""
    size: tuple[float, float]
    """Width, and height without the caption, in inches."""
    fill: Callable[[Any], None]
    """Draws into matplotlib's figure."""
    models: Mapping[str, str]
    """Role -> reference."""
    table: Sequence[Sequence[str]]
    """Titles, and rows."""
    words: Sequence[str]
    """Paragraphs under the figure."""
    notes: Sequence[str]
    """Paragraphs under the table."""

    def render(self, kind: str) -> bytes:
        """Return a file's bytes, without the date: equal figures, equal files.

        Args:
            kind: one of `request.FIGURES`.

        Raises:
            UsageError: matplotlib is not installed.
        """
        if kind == ".html":
            return self._page()
        return self._svg if kind == ".svg" else self._save(kind)

    def _save(self, kind: str) -> bytes:
        # it says where it keeps its fonts, if the home directory cannot be written
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        with needs_extra("matplotlib"):
            import matplotlib
            from matplotlib.figure import Figure
        lines = textwrap.wrap(self.caption, round(17 * self.size[0]), break_on_hyphens=False)
        width, height = self.size
        with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in another script
            figure = Figure(figsize=(width, height + 0.13 * len(lines)), layout="constrained")
            self.fill(figure)
            look: dict[str, Any] = {"fontsize": SMALL, "color": "0.25", "ha": "left", "parse_math": False}
            figure.supxlabel("\n".join(lines), x=0.02, **look)
            figure.draw_without_rendering()  # the layout needs ticks that only drawing decides on
            content = io.BytesIO()
            description = "Subject" if kind == ".pdf" else "Description"
            metadata = {"Title": self.title, description: self.description, **_METADATA[kind]}
            figure.savefig(content, format=kind.lstrip("."), dpi=300, metadata=metadata)
        return content.getvalue()

    @cached_property
    def _svg(self) -> bytes:
        """The SVG, which tells a screen reader what it shows."""
        before, start, rest = self._save(".svg").decode().partition("<svg ")
        attributes, _, inner = rest.partition(">")
        inner = inner.replace(f"<title>{html.escape(self.title, quote=False)}</title>", "", 1)  # it gets one with an id
        title, description = map(html.escape, (self.title, self.description))
        named = f'<title id="title">{title}</title><desc id="description">{description}</desc>'
        role = 'role="img" aria-labelledby="title description" '
        return f"{before}{start}{role}{attributes}>\n {named}{inner}".encode()

    def _page(self) -> bytes:
        """One self-contained page."""
        svg = self._svg.decode()
        svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg style="min-width:{90 * self.size[0]:.0f}px" ', 1)
        title = html.escape(self.title)
        heads, *rows = self.table
        roles = "".join(
            f"<li>{html.escape(clean(f'{as_word(role)}: {name}'))}</li>" for role, name in self.models.items()
        )
        above, below = ("".join(f"<p>{html.escape(one)}</p>" for one in said) for said in (self.words, self.notes))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head><body><main>\n<h1>{title}</h1><ul>{roles}</ul>\n"
            f"<figure>{svg}<figcaption>{html.escape(self.description)}</figcaption></figure>\n{above}\n"
            f'<div class="table" role="region" aria-label="Table" tabindex="0">'
            f"{Table(heads, rows).as_html(self.title)}</div>\n"
            f'<div class="notes">{below}</div></main></body></html>\n'
        ).encode()


def as_word(role: str) -> str:
    """Return a model's role as people write it."""
    return role.replace("finetuned", "fine-tuned")


def plain(text: str) -> str:
    """Return text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
