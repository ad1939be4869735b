"""The command as a process: how to start it, in what environment, and what it did."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

COMMAND = [sys.executable, "-m", "speechft_merge"]


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines of stderr that are not of progress."""
        return [line for line in self.err.splitlines() if not re.match(r"\[\d\d:\d\d:\d\d\] ", line)]

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def plain_environment() -> dict[str, str]:
    """This process's, without what changes the command's output; and compiled modules are kept, to start faster."""
    changing = ("FORCE_COLOR", "NO_COLOR", "SPEECHFT_MERGE_DEBUG", "HF_HUB_DISABLE_PROGRESS_BARS")
    changing += ("PYTHONDONTWRITEBYTECODE",)
    return {name: value for name, value in os.environ.items() if name not in changing}
