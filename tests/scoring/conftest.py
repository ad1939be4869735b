"""Models to be scored."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Given:
    """A candidate made of what a test gives; a scorer that asks for more fails."""

    model: Any = None
    processor: Any = None
    encoder: Any = None
    inputs: Any = None
    folder: Path | None = None

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        assert self.folder is not None
        self.folder.mkdir()
        try:
            yield self.folder
        finally:
            shutil.rmtree(self.folder)


@pytest.fixture
def written(tmp_path: Path) -> Given:
    """One that is written to a folder whose name a shell would take apart."""
    return Given(folder=tmp_path / "it's a $HOME; model")
