"""The teacher: Whisper's encoder on crops of one length."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from examples.sources.whisper import encoder_config, encoder_state, read_ctranslate2


class Teacher:
    """Whisper's encoder on crops of one fixed length, giving 50 frames a second."""

    def __init__(self, path: Path, samples: int) -> None:
        state = encoder_state(read_ctranslate2(path))
        positions = samples // 320
        state["embed_positions.weight"] = state["embed_positions.weight"][:positions].clone()
        config = encoder_config(state)
        self.encoder = WhisperEncoder(config).eval()
        self.encoder.load_state_dict(state)
        self.extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.width = config.d_model

    @torch.no_grad()
    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """The last layer's states for rows of samples between -1 and 1: (rows, frames, width)."""
        mel = self.extractor(list(waves.numpy()), sampling_rate=16000, padding="longest", return_tensors="pt")
        states: torch.Tensor = self.encoder(mel.input_features).last_hidden_state
        return states
