"""Turns audio into model inputs: the base's feature extractor, batches, and how many frames are valid."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError
from speechft_merge.similarity.filling import asked, import_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

RATE = 16_000
"""Samples a second, where the settings do not say."""
_HOP = 160
"""Samples from one window of a filter bank to the next."""
RATES = 4_000, 192_000
"""Samples a second, at least and at most, that a speech model may take."""
BATCH_SECONDS = 30.0
"""Seconds of padded audio in one batch: the activations of a Large model stay below a gigabyte."""

BATCHED = frozenset({"hubert", "wav2vec2"})
"""Families that are run in batches, where their CNN allows it; any other one clip at a time, which is always right.
WavLM's class hands torch two types of masks at once, which is deprecated."""

DEFAULTS = {"wav2vec2-bert": "SeamlessM4TFeatureExtractor"}
"""model_type -> the class its features are made with, where it is not what transformers has in its table."""
WAVEFORM = "Wav2Vec2FeatureExtractor"
"""The class for families that the table does not have."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips made into one input."""

    inputs: dict[str, Tensor]
    """What the model is called with."""
    frames: list[int] | None
    """Valid frames of each clip at the encoder's output; None for a single clip without padding: all are."""


class InputMaker:
    """Makes inputs for a family of models, as the base's own feature extractor does."""

    def __init__(self, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Read `preprocessor_config.json`; where there is none (empty), take the family's defaults.

        Raises:
            CheckpointError: the settings name no feature extractor for speech that transformers has.
            UsageError: transformers is not installed.
        """
        import_transformers(config)
        from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name

        self._config = config
        kind = str(settings.get("feature_extractor_type") or _default_kind(str(config.get("model_type"))))
        maker = feature_extractor_class_from_name(kind) if kind.endswith("FeatureExtractor") else None
        if maker is None:
            raise CheckpointError(f"preprocessor_config.json: transformers has no feature extractor {kind!r}")
        try:
            with warnings.catch_warnings(action="ignore"):  # AST's own settings leave filters empty
                self._extractor: Any = maker(**(settings or _defaults(config, kind)))
            self.rate = int(getattr(self._extractor, "sampling_rate", RATE))
            self.frames_of(self.rate)
            usable = RATES[0] <= self.rate <= RATES[1] and bool(self._extractor.model_input_names)
        except Exception as error:  # foreign settings may raise anything
            told = " ".join(str(error).split())
            raise CheckpointError(f"preprocessor_config.json or config.json cannot be used: {told}") from error
        if not usable:
            raise CheckpointError(f"preprocessor_config.json: sampling_rate {self.rate} is not one of speech")

    @property
    def longest(self) -> int | None:
        """Most samples that the model takes; None without a bound. Whisper and AST have a window, padded to its end."""
        if self.counts_padding:
            return int(self._extractor.max_length) * _HOP
        positions = self._config.get("max_source_positions") if self._is_whisper else None
        return None if positions is None else int(positions) * 2 * int(self._extractor.hop_length)

    @property
    def counts_padding(self) -> bool:
        """Whether frames of padding are among those that are compared: the patches of AST have no order in time."""
        return self._config.get("model_type") == "audio-spectrogram-transformer"

    @property
    def _is_whisper(self) -> bool:
        return self._config.get("model_type") == "whisper"

    @property
    def batches_alike(self) -> bool:
        """Whether a clip gives the same frames beside others as alone, to the rounding.

        Not where the CNN has a group norm over time (every Base model of the wav2vec 2.0 family): padding moves valid
        frames by 30 %, mask or not. Nor in data2vec, whose positional convolutions let padding through.
        """
        return self._config.get("feat_extract_norm") == "layer" and self._config.get("model_type") in BATCHED

    def frames_of(self, samples: int) -> int:
        """Return the frames that a clip of so many samples has at the encoder's output; 0 if it is too short."""
        if self._is_whisper and self.longest is not None:
            return min(-(-samples // (2 * int(self._extractor.hop_length))), int(self._config["max_source_positions"]))
        kernels, strides = self._config.get("conv_kernel"), self._config.get("conv_stride")
        if kernels and strides and self._takes_waveform:
            for kernel, stride in zip(kernels, strides, strict=False):
                samples = (samples - int(kernel)) // int(stride) + 1 if samples >= int(kernel) else 0
            return samples
        return max(0, (samples - 400) // _HOP + 1) // 2  # 25 ms windows every 10 ms, two to a frame

    @property
    def _takes_waveform(self) -> bool:
        return "input_values" in self._extractor.model_input_names

    def batches(self, clips: Sequence[NDArray[np.float32]]) -> Iterator[Batch]:
        """Yield all clips, each (samples,), shortest first where several share a batch."""
        if not self.batches_alike:
            for clip in clips:
                yield self._make([clip])
            return
        waiting: list[NDArray[np.float32]] = []
        for clip in sorted(clips, key=len):
            if waiting and (len(waiting) + 1) * len(clip) > BATCH_SECONDS * self.rate:
                yield self._make(waiting)
                waiting = []
            waiting.append(clip)
        if waiting:
            yield self._make(waiting)

    def _make(self, clips: Sequence[NDArray[np.float32]]) -> Batch:
        frames = [self.frames_of(len(clip)) for clip in clips]
        if self._is_whisper and self.longest is not None:
            made = self._extractor(
                [clip[: self.longest] for clip in clips], sampling_rate=self.rate, return_tensors="pt",
                max_length=self.longest, truncation=True, padding="max_length",
            )  # fmt: skip
            return Batch({"input_features": made["input_features"].float()}, frames)
        made = self._extractor(
            list(clips),
            sampling_rate=self.rate,
            return_tensors="pt",
            padding=True,
            **asked(self._extractor.__call__, return_attention_mask=True),
        )
        key = self._extractor.model_input_names[0]
        inputs, mask = {key: made[key].float()}, made.get("attention_mask")
        if len(clips) == 1 and (mask is None or self._takes_waveform):
            return Batch(inputs, None)
        if not self._takes_waveform:
            frames = [int(count) for count in mask.sum(-1)]
        return Batch({**inputs, "attention_mask": mask}, None if len(clips) == 1 and mask.all() else frames)


def _default_kind(family: str) -> str:
    """Return the name of a family's feature extractor."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

    known = DEFAULTS.get(family) or FEATURE_EXTRACTOR_MAPPING_NAMES.get(family, WAVEFORM)
    return known if isinstance(known, str) else str(known[0])


def _defaults(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if config.get("model_type") == "whisper":
        return {"feature_size": int(config.get("num_mel_bins", 80))}
    if config.get("model_type") == "wav2vec2-bert":
        bins = int(config.get("feature_projection_input_dim", 160)) // 2  # two windows to a frame
        return {"feature_size": bins, "num_mel_bins": bins}
    return {"do_normalize": True, "sampling_rate": RATE, "return_attention_mask": True} if kind == WAVEFORM else {}


def settings_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the settings of two feature extractors that change what a model sees, and differ where both state them."""
    changing = (
        "feature_extractor_type",
        "sampling_rate",
        "do_normalize",
        "feature_size",
        "num_mel_bins",
        "hop_length",
        "n_fft",
        "stride",
    )
    return [key for key in changing if key in ours and key in theirs and ours[key] != theirs[key]]
