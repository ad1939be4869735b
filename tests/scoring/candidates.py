"""Models to be scored."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechft_merge.similarity.encoders import Encoder, build_encoder

PAIR = Path(__file__).parents[2] / "examples" / "pair"


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


def encoder_of(model: Any) -> Encoder:
    return build_encoder("model", model.config.to_dict(), dict(model.state_dict()), torch.device("cpu"))
