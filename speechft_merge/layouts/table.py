"""Translates names from one layout to another by how they begin."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Table:
    """Rows of two beginnings, in whole words; `*` stands for a number. The longest that fits a name is replaced.

    What fits no row has the same name in both layouts. No two rows may share a beginning on either side: then
    the table with its columns exchanged undoes this one.
    """

    rows: tuple[tuple[str, str], ...]

    @staticmethod
    def parse(text: str) -> Table:
        """Parse one row per line, two columns."""
        rows = [line.split() for line in text.strip().splitlines()]
        return Table(tuple((ours, theirs) for ours, theirs in rows))

    def __add__(self, other: Table) -> Table:
        return Table(self.rows + other.rows)

    def renamed(self, name: str) -> str:
        """Return the name in the other layout."""
        for pattern, template in self._patterns:
            found = pattern.match(name)
            if found:
                return found.expand(template) + name[found.end() :]
        return name

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        longest_first = sorted(self.rows, key=lambda row: -len(row[0].split(".")))
        return [
            (re.compile(re.escape(ours).replace(r"\*", r"(\d+)") + r"(?![^.])"), theirs.replace("*", r"\1"))
            for ours, theirs in longest_first
        ]
