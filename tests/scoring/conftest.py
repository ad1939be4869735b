"""Models to be scored, and audio to score them on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from candidates import PAIR, Given, encoder_of
from models import transformers

from speechft_merge.similarity.inputs import InputMaker

WriteAudio = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Given:
    """One that is written to a folder whose name a shell would take apart."""
    return Given(folder=tmp_path / "it's a $HOME; model")


@pytest.fixture(scope="session")
def shipped() -> Given:
    """The base that ships with the examples."""
    model = transformers().HubertModel.from_pretrained(PAIR / "base", dtype=torch.float32)
    settings = json.loads((PAIR / "base" / "preprocessor_config.json").read_text())
    return Given(encoder=encoder_of(model), inputs=InputMaker(model.config.to_dict(), settings))


@pytest.fixture
def write_audio(tmp_path: Path) -> WriteAudio:
    """A recording of noise that sounds as loud as speech."""

    def write(name: str, seconds: float = 0.5, rate: int = 16_000) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng([*name.encode()])
        soundfile.write(path, 0.1 * random.standard_normal(int(seconds * rate)), rate)
        return path

    return write
