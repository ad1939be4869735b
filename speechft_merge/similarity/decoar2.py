"""Defines DeCoAR 2.0 for transformers, which has no class of it: filter banks, a projection, wav2vec 2.0's transformer.

Source: Ling & Liu 2020 (arXiv:2012.06659), Kaldi's filter banks. To import this module makes the classes known to
transformers' AutoConfig, AutoModel and AutoFeatureExtractor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import transformers
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.models.wav2vec2 import modeling_wav2vec2 as wav2vec2

from speechft_merge.layouts.configuration import DECOAR2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_WINDOW, _HOP, _FFT = 400, 160, 512
_MEL_FLOOR = float(np.finfo(np.float32).eps)
_TINY = 1e-10
"""What keeps the spread of a band from 0."""


class Decoar2Config(transformers.Wav2Vec2Config):  # type: ignore[misc]
    """Configuration of the encoder, by wav2vec 2.0's names; what that has of convolutions is not used."""

    model_type = DECOAR2
    input_dim = 80
    """Bands of the filter bank."""


class Decoar2Model(wav2vec2.Wav2Vec2PreTrainedModel):  # type: ignore[misc]
    """The encoder; weights under the canonical names."""

    config_class = Decoar2Config
    base_model_prefix = DECOAR2
    main_input_name = "input_features"

    def __init__(self, config: Decoar2Config) -> None:
        super().__init__(config)
        self.feature_projection = torch.nn.ModuleDict(
            {"projection": torch.nn.Linear(config.input_dim, config.hidden_size)}
        )
        self.dropout = torch.nn.Dropout(config.feat_proj_dropout)
        stable = config.do_stable_layer_norm
        self.encoder = (wav2vec2.Wav2Vec2EncoderStableLayerNorm if stable else wav2vec2.Wav2Vec2Encoder)(config)
        self.post_init()

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> transformers.modeling_outputs.BaseModelOutput:
        """Return the hidden states after the last block, (clips, frames, width).

        Args:
            input_features: (clips, frames, bands).
            attention_mask: (clips, frames), 0 where a clip was padded.
        """
        projected = self.dropout(self.feature_projection["projection"](input_features))
        return self.encoder(projected, attention_mask=None if attention_mask is None else attention_mask.bool())


class Decoar2FeatureExtractor(transformers.SequenceFeatureExtractor):  # type: ignore[misc]
    """Log mel energies every 20 ms, each band normalised over the clip: Kaldi's with Hamming windows, no dither."""

    model_input_names: ClassVar = ["input_features", "attention_mask"]

    def __init__(
        self, feature_size: int = 80, sampling_rate: int = 16_000, padding_value: float = 0.0, **more: Any
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **more)
        self._window = window_function(_WINDOW, "hamming", periodic=False)
        self._filters = mel_filter_bank(
            _FFT // 2 + 1, feature_size, 20.0, sampling_rate / 2, sampling_rate,
            mel_scale="kaldi", triangularize_in_mel_space=True,
        )  # fmt: skip

    def __call__(
        self, clips: Sequence[NDArray[np.float32]], *, padding: bool = True, return_tensors: str | None = None, **_: Any
    ) -> transformers.BatchFeature:
        """Return `input_features` (clips, frames, bands) and their mask.

        Args:
            clips: each (samples,), -1 to 1; two windows or more, so that a band has a spread.
            padding: whether to pad all to the longest.
            return_tensors: as transformers has it.
        """
        features = transformers.BatchFeature({"input_features": [self._bands_of(clip) for clip in clips]})
        return self.pad(features, padding=padding, return_tensors=return_tensors, return_attention_mask=True)

    def _bands_of(self, clip: NDArray[np.float32]) -> NDArray[np.float32]:
        bands = spectrogram(
            clip, self._window, _WINDOW, _HOP, _FFT, power=2.0, center=False, preemphasis=0.97,
            mel_filters=self._filters, mel_floor=_MEL_FLOOR, log_mel="log", remove_dc_offset=True,
        ).T  # fmt: skip
        normalised = (bands - bands.mean(0)) / (bands.std(0, ddof=1) + _TINY)
        every_second: NDArray[np.float32] = normalised[::2]
        return every_second


transformers.AutoConfig.register(DECOAR2, Decoar2Config, exist_ok=True)
transformers.AutoModel.register(Decoar2Config, Decoar2Model, exist_ok=True)
transformers.AutoFeatureExtractor.register(Decoar2Config, Decoar2FeatureExtractor, exist_ok=True)
