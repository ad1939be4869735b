"""The encoder of Whisper, read from a CTranslate2 file into transformers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, NDArray[np.generic]]:
    """The tensors of a CTranslate2 model file (binary version 4 or later), by name."""
    data = path.read_bytes()
    position = 0

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + code, data, position)
        position += struct.calcsize("<" + code)
        return int(value)

    def text() -> str:
        nonlocal position
        length = number("H")
        value = data[position : position + length - 1].decode()
        position += length
        return value

    version, specification, _revision, count = number("I"), text(), number("I"), number("I")
    if version < 4 or specification != "WhisperSpec":
        raise ValueError(f"{path}: not a Whisper model of CTranslate2 version 4 or later")
    tensors = {}
    for _ in range(count):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        tensors[name] = np.frombuffer(data, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
    return tensors


def encoder_state(tensors: dict[str, NDArray[np.generic]]) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the names of transformers, in float32."""

    def get(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[f"encoder/{name}"].astype(np.float32))

    state = {"embed_positions.weight": get("position_encodings/encodings")}
    renamed = {"conv1": "conv1", "conv2": "conv2"}
    norms = {"layer_norm": "layer_norm"}
    layers = sum(name.startswith("encoder/layer_") and name.endswith("/ffn/linear_0/weight") for name in tensors)
    for index in range(layers):
        source, target = f"layer_{index}", f"layers.{index}"
        norms[f"{target}.self_attn_layer_norm"] = f"{source}/self_attention/layer_norm"
        norms[f"{target}.final_layer_norm"] = f"{source}/ffn/layer_norm"
        renamed[f"{target}.self_attn.out_proj"] = f"{source}/self_attention/linear_1"
        renamed[f"{target}.fc1"] = f"{source}/ffn/linear_0"
        renamed[f"{target}.fc2"] = f"{source}/ffn/linear_1"
        for part in ("weight", "bias"):
            fused = get(f"{source}/self_attention/linear_0/{part}").chunk(3)
            for key, tensor in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                if (key, part) != ("k_proj", "bias"):  # Whisper has no bias there; CTranslate2 stores zeros
                    state[f"{target}.self_attn.{key}.{part}"] = tensor.clone()
    for target, source in renamed.items():
        state |= {f"{target}.{part}": get(f"{source}/{part}") for part in ("weight", "bias")}
    for target, source in norms.items():
        state |= {f"{target}.weight": get(f"{source}/gamma"), f"{target}.bias": get(f"{source}/beta")}
    return state


def encoder_config(state: dict[str, torch.Tensor]) -> WhisperConfig:
    """The settings that these tensors imply."""
    width, mels = state["conv1.weight"].shape[:2]
    return WhisperConfig(
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=sum(name.endswith(".fc1.weight") for name in state),
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        max_source_positions=len(state["embed_positions.weight"]),
    )
