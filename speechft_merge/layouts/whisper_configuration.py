"""Derives config.json and preprocessor_config.json of a Whisper that openai-whisper wrote, from shapes and its `dims`.

Sources: transformers' convert_openai_to_hf.py and configuration_whisper.py, openai-whisper's tokenizer.py and audio.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError
from speechft_merge.layouts.structure import blocks_of, locate

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shapes = Mapping[str, tuple[int, ...]]
    Settings = Mapping[str, Any]

NOT_IN_ITS_FILE = ("tokenizer.json", "generation_config.json")
"""What generating text needs, and only transformers' folders hold."""

_ENGLISH_WORDS, _WORDS = 51864, 51865
"""Size of the vocabulary of English alone; of many languages, at least."""
_RATE, _HOP, _FFT = 16000, 160, 400


def derive_whisper(shapes: Shapes, dims: Settings) -> dict[str, Any]:
    """Derive the config.json of `WhisperForConditionalGeneration`.

    Args:
        shapes: by transformers' names without prefix.
        dims: openai-whisper's `ModelDimensions`.

    Raises:
        CheckpointError: it has no decoder, or `dims` do not tell what no shape does.
    """
    heads = [dims.get(f"n_{half}_head") for half in ("audio", "text")]
    if None in heads:
        raise CheckpointError("the number of attention heads is not known: its file has no `dims` of openai-whisper")
    stacks = blocks_of(locate(shapes).values())
    if "decoder" not in stacks or "encoder" not in stacks:
        raise CheckpointError("it is not a whole Whisper: it has no encoder or no decoder")
    words, width = shapes["decoder.embed_tokens.weight"]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": width,
        "vocab_size": words,
        "num_mel_bins": shapes["encoder.conv1.weight"][1],
        "max_source_positions": shapes["encoder.embed_positions.weight"][0],
        "max_target_positions": shapes["decoder.embed_positions.weight"][0],
        "scale_embedding": False,
        **{f"{stack}_layers": len(stacks[stack]) for stack in ("encoder", "decoder")},
        **{f"{s}_ffn_dim": shapes[f"{s}.layers.0.fc1.weight"][0] for s in ("encoder", "decoder")},
        "encoder_attention_heads": heads[0],
        "decoder_attention_heads": heads[1],
        **_special_tokens(words),
    }


def _special_tokens(words: int) -> dict[str, int | None]:
    """Return the numbers of the tokens around a text; none are known of another vocabulary than OpenAI's."""
    end = 50257 if words >= _WORDS else 50256 if words == _ENGLISH_WORDS else None
    ends: dict[str, int | None] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    return ends if end is None else ends | {"decoder_start_token_id": end + 1}


def derive_whisper_extractor(shapes: Shapes) -> dict[str, Any]:
    """Derive its preprocessor_config.json: how spectrograms are made."""
    frames = 2 * shapes["encoder.embed_positions.weight"][0]  # the second convolution halves them
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": shapes["encoder.conv1.weight"][1],
        "sampling_rate": _RATE,
        "hop_length": _HOP,
        "n_fft": _FFT,
        "chunk_length": frames * _HOP // _RATE,
        "n_samples": frames * _HOP,
        "nb_max_frames": frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
