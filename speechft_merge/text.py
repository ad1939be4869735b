"""Prepares text for a terminal: cuts long text, words sizes."""

from __future__ import annotations

import shutil
import sys
import textwrap

from speechft_merge.foreign import clean

LINE = 2000
"""Characters of a sentence, at most; names out of foreign files may have megabytes."""


def fit(text: str, limit: int = LINE) -> str:
    """Return clean text of at most `limit` characters; a longer one loses its middle."""
    return _cut(clean(_cut(text, limit)), limit)  # cleaning megabytes would take seconds


def wrapped(text: str) -> str:
    """Return a sentence on lines that fit the terminal, broken between words; as it is where stdout is none."""
    if not sys.stdout.isatty() or len(text) <= (columns := shutil.get_terminal_size().columns):
        return text
    return textwrap.fill(text, columns, break_long_words=False, break_on_hyphens=False)


def _cut(text: str, limit: int) -> str:
    tail = limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def megabytes(count: int) -> str:
    """Return a number of bytes in words."""
    return (
        f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB" if count >= 10**5 else f"{count} bytes"
    )
