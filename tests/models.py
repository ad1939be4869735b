"""Tiny models of every family that transformers has a class for, and checkpoints that lie in memory only."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from speechft_merge.checkpoints import Checkpoint, DType, TensorSpan
from speechft_merge.sources import ByteSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CNN = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 12,
    "classifier_proj_size": 16,
    "xvector_output_dim": 16,
    "tdnn_dim": (16,) * 5,
}
_QUANTIZER = {"codevector_dim": 16, "proj_codevector_dim": 16, "num_codevectors_per_group": 8}
_SQUEEZED = _CNN | {"squeeze_factor": 2, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}
_TEXT = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_TRANSLATOR: dict[str, Any] = _TEXT | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_WHISPER: dict[str, Any] = _TRANSLATOR | {
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 10,
    "classifier_proj_size": 16,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "Hubert": _SIZES | _CNN,
    "Wav2Vec2": _SIZES | _CNN | _QUANTIZER,
    "WavLM": _SIZES | _CNN,
    "Data2VecAudio": _SIZES | _CNN | {"num_conv_pos_embeddings": 3},
    "Wav2Vec2Bert": _SIZES | {"feature_projection_input_dim": 16},
    "Whisper": _WHISPER,
    "SEW": _SIZES | _SQUEEZED,
    "SEWD": _SIZES | _SQUEEZED,
    "UniSpeech": _SIZES | _CNN | _QUANTIZER,
    "UniSpeechSat": _SIZES | _CNN | _QUANTIZER,
    "Wav2Vec2Conformer": _SIZES | _CNN,
    "AST": _SIZES,
    "ParakeetEncoder": _SIZES | {"subsampling_conv_channels": 16},
    "Speech2Text": _TRANSLATOR | {"conv_channels": 32},
    "SpeechT5": _TRANSLATOR | _CNN | {"hidden_size": 32},
    "Moonshine": _TEXT
    | {"hidden_size": 32, "intermediate_size": 64, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2}
    | {"encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2},
}
CLASSES: dict[str, tuple[str, ...]] = {
    "Hubert": ("Model", "ForCTC", "ForSequenceClassification"),
    "Wav2Vec2": ("Model", "ForPreTraining", "ForCTC", "ForSequenceClassification", "ForXVector"),
    "WavLM": ("Model", "ForCTC", "ForSequenceClassification", "ForXVector"),
    "Data2VecAudio": ("Model", "ForCTC", "ForSequenceClassification"),
    "Wav2Vec2Bert": ("Model", "ForCTC", "ForSequenceClassification"),
    "Whisper": ("Model", "ForConditionalGeneration", "ForAudioClassification"),
}
"""The first is the bare one."""

_DTYPES = {dtype.torch_name: dtype for dtype in DType}


@functools.cache
def transformers() -> Any:
    """The library, silent; imported when the first test needs it."""
    library: Any = import_module("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def model_class(family: str, kind: str) -> Any:
    return getattr(transformers(), family + kind)


def build(family: str, kind: str = "Model", seed: int = 0, **config: Any) -> Any:
    """A model with random weights."""
    adapter = {"add_adapter": kind != "ForSequenceClassification"} if family == "Wav2Vec2Bert" else {}
    settings = model_class(family, "Config")(**(_CONFIGS[family] | adapter | config))
    torch.manual_seed(seed)
    return model_class(family, kind)(settings).eval()


@functools.cache
def shapes(family: str, kind: str) -> Mapping[str, tuple[int, ...]]:
    return shapes_of(build(family, kind).state_dict())


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@functools.cache
def backbone(family: str, kind: str) -> Mapping[str, str]:
    """Name in the bare class -> name in this one. transformers itself says what the prefix is."""
    prefix = model_class(family, kind).base_model_prefix + "."
    bare = shapes(family, "Model")
    found = {name.removeprefix(prefix): name for name in shapes(family, kind)}
    return {name: found[name] for name in bare if name in found}


def fine_tune(base: Any, family: str, kind: str, seed: int = 1, scale: float = 0.05, **config: Any) -> Any:
    """A model of another class with the base's backbone, each weight moved a little, and a head of its own."""
    model = build(family, kind, seed, **config)
    ours, theirs = backbone(family, type(base).__name__.removeprefix(family)), backbone(family, kind)
    weights, moved = base.state_dict(), model.state_dict()
    torch.manual_seed(seed)
    for name in ours.keys() & theirs.keys():
        if weights[ours[name]].is_floating_point():
            moved[theirs[name]].copy_(weights[ours[name]] + scale * torch.randn_like(weights[ours[name]]))
    return model


def save_bin(weights: Mapping[str, torch.Tensor], config: Any, folder: Path, *, legacy: bool = False) -> Path:
    """A model directory as transformers 4 wrote it: `pytorch_model.bin` and a config."""
    config.save_pretrained(folder)
    torch.save(dict(weights), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    return folder


class Memory(ByteSource):
    """Bytes as a file."""

    seeks_cheaply = True

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self.data = data
        self.name = name
        self.size = len(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert 0 <= offset <= offset + len(buffer) <= self.size
        buffer[:] = self.data[offset : offset + len(buffer)]

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return self.data[offset : offset + length]


def to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes | bytearray | memoryview, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)


def dtype_of(dtype: torch.dtype) -> DType:
    return _DTYPES[str(dtype).removeprefix("torch.")]


def span_of(tensor: torch.Tensor, name: str = "memory") -> TensorSpan:
    return TensorSpan(Memory(to_bytes(tensor), name), 0, dtype_of(tensor.dtype), tuple(tensor.shape))


def checkpoint_of(tensors: Mapping[str, torch.Tensor], name: str = "model") -> Checkpoint:
    """A checkpoint in memory; tensors that are one and the same object are tied, as in a pickled file."""
    places: dict[int, int] = {}
    data = b""
    for tensor in tensors.values():
        if id(tensor) not in places:
            places[id(tensor)] = len(data)
            data += to_bytes(tensor)
    source = Memory(data, name)
    spans = {n: TensorSpan(source, places[id(t)], dtype_of(t.dtype), tuple(t.shape)) for n, t in tensors.items()}
    return Checkpoint(name, "safetensors", spans, [source])
