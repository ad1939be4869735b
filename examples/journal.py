"""Records kept in a file of JSON lines, so that a run can be taken up where it broke off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """The records of a file, which several processes may add to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self.read()

    def read(self) -> None:
        """Take in what is in the file now."""
        if self.path.exists():
            self.records = [json.loads(line) for line in self.path.read_text().splitlines()]

    def find(self, **key: Any) -> Record | None:
        """The first record with these entries."""
        return next((r for r in self.records if all(r.get(name) == value for name, value in key.items())), None)

    def add(self, **record: Any) -> None:
        """Keep a record, and print its numbers and short texts."""
        self.records.append(record)
        with self.path.open("ab", buffering=0) as file:  # one write a line: whole, whoever else is writing
            file.write((json.dumps(record) + "\n").encode())
        shown = {name: value for name, value in record.items() if isinstance(value, str | int | float)}
        print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()), flush=True)
