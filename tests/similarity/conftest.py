from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

WriteAudio = Callable[..., Path]


@pytest.fixture
def write_audio(tmp_path: Path) -> WriteAudio:
    """A recording of noise that sounds as loud as speech."""

    def write(name: str, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, gain: float = 0.1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(len(name) + int(1000 * seconds))
        samples = gain * random.standard_normal((int(seconds * rate), channels))
        soundfile.write(path, samples.clip(-1, 1), rate)
        return path

    return write
