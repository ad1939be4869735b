"""Makes foreign text (names out of files, folders, servers) harmless where it is shown: on a terminal, in Markdown."""

from __future__ import annotations

_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\`*[]|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def clean(text: str) -> str:
    """Return text without characters that a terminal would interpret, or that turn its direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line: no markup, HTML or link of its own."""
    return clean(text).translate(_MARKDOWN)


def as_code(text: str) -> str:
    """Return Markdown that shows a text as code."""
    return f"`{clean(text).replace('`', chr(39))}`"
