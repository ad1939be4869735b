"""Write pairs of checkpoints to merge: random weights under the names and shapes of real speech encoders.

Each pair comes twice, as model.safetensors and as pytorch_model.bin, in the folders
FOLDER/<pair>/{safetensors,bin}/{base,finetuned}. A pair that exists is left alone.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel, PreTrainedModel, Wav2Vec2Config, Wav2Vec2Model

NOISE = 0.02  # of a tensor's standard deviation, between base and fine-tuned
SPREAD = 0.02  # given to what the initialisation leaves constant, biases and norms, as training would
FROZEN = "feature_extractor."  # equal on both sides, as after the usual fine-tuning

Weights = dict[str, torch.Tensor]


def hubert() -> PreTrainedModel:
    """HuBERT-base in float32: 94 M parameters, 378 MB."""
    return HubertModel(HubertConfig())


def xlsr() -> PreTrainedModel:
    """XLS-R-1B in bfloat16: 963 M parameters, 1.9 GB."""
    config = Wav2Vec2Config(
        hidden_size=1280,
        num_hidden_layers=48,
        num_attention_heads=16,
        intermediate_size=5120,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        dtype="bfloat16",
    )
    model = Wav2Vec2Model(config)
    model.bfloat16()
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"hubert": hubert, "xlsr": xlsr}


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


def write(weights: Weights, model: PreTrainedModel, pair: Path, side: str) -> None:
    """Save one side of a pair in both formats."""
    for kind in ("safetensors", "bin"):
        folder = pair / kind / side
        folder.mkdir(parents=True)
        model.config.save_pretrained(folder)
        if kind == "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def make(name: str, pair: Path) -> None:
    """Write a pair beside its final place, and move it there when whole."""
    torch.manual_seed(0)
    model = MODELS[name]()
    weights = {key: spread(tensor).contiguous() for key, tensor in model.state_dict().items()}
    partial = pair.with_name(f"{pair.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(weights, model, partial, "base")
    for key in weights:
        weights[key] = finetune(key, weights[key])
    write(weights, model, partial, "finetuned")
    partial.rename(pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=MODELS, help="one pair (default: all)")
    options = parser.parse_args()
    for name in [options.only] if options.only else MODELS:
        pair = options.folder / name
        if not pair.exists():
            make(name, pair)
        print(pair)


if __name__ == "__main__":
    main()
