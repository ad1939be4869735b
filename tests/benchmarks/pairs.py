"""Write pairs of checkpoints to merge: random weights under the names and shapes of real speech encoders.

Each pair comes in three containers, as pytorch_model.bin, as model.safetensors and as shards of safetensors with
their index, in the folders FOLDER/<pair>/{bin,safetensors,sharded}/{base,finetuned}; its weights are the same in all.
What exists is left alone.
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)

NOISE = 0.02  # of a tensor's standard deviation, between base and fine-tuned
SPREAD = 0.02  # given to what the initialisation leaves constant, biases and norms, as training would
FROZEN = "feature_extractor."  # equal on both sides, as after the usual fine-tuning
KINDS = ("bin", "safetensors", "sharded")

Weights = dict[str, torch.Tensor]
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


def hubert() -> PreTrainedModel:
    """HuBERT Base: 94 M parameters, 378 MB."""
    return HubertModel(HubertConfig())


def wav2vec2() -> PreTrainedModel:
    """wav2vec 2.0 Large: 317 M parameters, 1.3 GB."""
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return Wav2Vec2Model(Wav2Vec2Config(**sizes))


def xlsr() -> PreTrainedModel:
    """XLS-R-1B: 963 M parameters, 1.9 GB."""
    sizes = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120}
    return Wav2Vec2Model(Wav2Vec2Config(**sizes, **LARGE, dtype="bfloat16"))


def whisper() -> PreTrainedModel:
    """Whisper-large-v3: 1,543 M parameters, 3.1 GB."""
    config = WhisperConfig(
        vocab_size=51866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
        dtype="float16",
    )
    return WhisperModel(config)


@dataclass(frozen=True)
class Maker:
    model: Callable[[], PreTrainedModel]
    dtype: torch.dtype
    shards: str = "500MB"


MAKERS = {
    "hubert": Maker(hubert, torch.float32, "100MB"),  # smaller than 500 MB as a whole
    "wav2vec2": Maker(wav2vec2, torch.float32),
    "xlsr": Maker(xlsr, torch.bfloat16),
    "whisper": Maker(whisper, torch.float16),
}


def initialised(maker: Maker) -> PreTrainedModel:
    """The model, made in its own element type: in float32 a large one would take twice the memory."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(maker.dtype)
    try:
        return maker.model()
    finally:
        torch.set_default_dtype(default)


def noise_like(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.randn(tensor.shape).mul_(scale)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or noise around it where all of it is one value."""
    if tensor.float().std() > 0:
        return tensor
    return (tensor + noise_like(tensor, SPREAD)).to(tensor.dtype)


def finetune(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.startswith(FROZEN):
        return tensor
    scale = NOISE * tensor.float().std().item()
    return noise_like(tensor, scale).add_(tensor).to(tensor.dtype)


def write(weights: Weights, folder: Path, kind: str, shards: str) -> None:
    """Save weights in a container."""
    if kind == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        save_torch_state_dict(weights, folder, max_shard_size=shards)


@torch.no_grad()
def make(maker: Maker, pair: Path, kinds: list[str]) -> None:
    """Write a pair in some containers, each beside its final place, and move it there when whole."""
    model = initialised(maker)
    config, weights = model.config, {key: spread(tensor).contiguous() for key, tensor in model.state_dict().items()}
    del model
    for side in ("base", "finetuned"):
        if side == "finetuned":
            weights = {key: finetune(key, weights.pop(key)) for key in list(weights)}
        for kind in kinds:
            folder = pair / f"{kind}.partial" / side
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            config.save_pretrained(folder)
            write(weights, folder, kind, maker.shards)
    for kind in kinds:
        (pair / f"{kind}.partial").rename(pair / kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=MAKERS, help="one pair (default: all)")
    parser.add_argument("--kind", choices=KINDS, help="one container (default: all)")
    options = parser.parse_args()
    for name in [options.only] if options.only else MAKERS:
        pair = options.folder / name
        kinds = [kind for kind in ([options.kind] if options.kind else KINDS) if not (pair / kind).exists()]
        if kinds:
            make(MAKERS[name], pair, kinds)
        print(pair)


if __name__ == "__main__":
    main()
