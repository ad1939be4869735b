from collections.abc import Callable
from pathlib import Path

import pytest

from speechft_merge.checkpoints import Checkpoint, open_checkpoint

Open = Callable[[bytes], Checkpoint]


@pytest.fixture(scope="session")
def open_bytes(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Opens bytes as a file; one for the whole run, so that hypothesis may use it."""
    path: Path = tmp_path_factory.mktemp("bytes") / "weights"

    def opened(content: bytes) -> Checkpoint:
        path.write_bytes(content)
        return open_checkpoint(str(path))

    return opened
