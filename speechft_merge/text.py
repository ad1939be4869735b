"""Prepares text for a terminal: cuts long text, words sizes."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO

from speechft_merge.foreign import clean

LINE = 2000
"""Characters of a sentence, at most; names out of foreign files may have megabytes."""


def fit(text: str, limit: int = LINE) -> str:
    """Return clean text of at most `limit` characters; a longer one loses its middle."""
    return _cut(clean(_cut(text, limit)), limit)  # cleaning megabytes would take seconds


def columns_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal; None of a log or pipe, whose lines stay whole, so that they can be searched."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def wrapped(text: str, columns: int | None, indent: str = "") -> str:
    """Return a sentence on lines of so many columns, broken between words; as it is for None.

    Args:
        text: the sentence.
        columns: of a terminal, see `columns_of`.
        indent: of lines after the first.
    """
    if columns is None or len(text) <= columns:
        return text
    return textwrap.fill(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _cut(text: str, limit: int) -> str:
    tail = limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def megabytes(count: int) -> str:
    """Return a number of bytes in words."""
    return (
        f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB" if count >= 10**5 else f"{count} bytes"
    )
