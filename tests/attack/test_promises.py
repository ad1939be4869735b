"""The page of promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_promise_names_a_test_that_exists() -> None:
    rows = [line for line in (TESTS / "attack/README.md").read_text().splitlines() if line.startswith("| ")][1:]
    written = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    assert len(rows) > 20
    for row in rows:
        promised = re.findall(r"`(test_\w+)`", row)
        assert promised, row
        assert [name for name in promised if f"def {name}(" not in written] == []
