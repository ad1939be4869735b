"""Encoders built as the labs built theirs, from the published structure: what their state dicts are called and what
they compute owes nothing to the tables under test.

Structure: wav2vec 2.0 (fairseq, wav2vec2.py), HuBERT (fairseq, hubert.py), WavLM (WavLM.py, modules.py), DeCoAR 2.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CONV = ((16, 10, 5), (16, 3, 2), (16, 2, 2))


@dataclass(frozen=True)
class Lab:
    """Which encoder."""

    family: str
    layers: int = 2
    width: int = 32
    heads: int = 2
    inner: int = 64
    conv: tuple[tuple[int, int, int], ...] = CONV
    conv_pos: int = 16
    conv_pos_groups: int = 2
    large: bool = False
    """Layer norm in every convolution, and before attention rather than after it."""
    conv_bias: bool = False
    batch_norm: bool = False
    buckets: int = 32
    distance: int = 80
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The model's configuration as fairseq has it."""
        wavlm = {"relative_position_embedding": True, "num_buckets": self.buckets, "max_distance": self.distance}
        return {
            "extractor_mode": "layer_norm" if self.large else "default",
            "encoder_layers": self.layers,
            "encoder_embed_dim": self.width,
            "encoder_ffn_embed_dim": self.inner,
            "encoder_attention_heads": self.heads,
            "activation_fn": "gelu",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "activation_dropout": 0.0,
            "encoder_layerdrop": 0.05,
            "layer_norm_first": self.large,
            "conv_feature_layers": " + ".join(f"[({dim},{kernel},{stride})]" for dim, kernel, stride in self.conv),
            "conv_bias": self.conv_bias,
            "conv_pos": self.conv_pos,
            "conv_pos_groups": self.conv_pos_groups,
            **({"conv_pos_batch_norm": True} if self.batch_norm else {}),
            **(wavlm | {"gru_rel_pos": True} if self.family == "wavlm" else {}),
            **self.extra,
        }


class WeightNormConv(nn.Module):
    """A convolution whose kernel is g * v / ||v||, a norm for each position of the kernel, as torch < 2 names them."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(lab.width) * 0.1)
        self.weight_g = nn.Parameter(1 + torch.rand(1, 1, lab.conv_pos))
        self.weight_v = nn.Parameter(torch.randn(lab.width, lab.width // lab.conv_pos_groups, lab.conv_pos))
        self.groups = lab.conv_pos_groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.weight_g * self.weight_v / self.weight_v.norm(dim=(0, 1), keepdim=True)
        return functional.conv1d(x, kernel, self.bias, padding=kernel.shape[-1] // 2, groups=self.groups)


class SamePad(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :-1]  # kernels of even width give one frame too many


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-2, -1)


class ConvExtractor(nn.Module):
    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        previous = 1
        for i, (dim, kernel, stride) in enumerate(lab.conv):
            modules: list[nn.Module] = [nn.Conv1d(previous, dim, kernel, stride, bias=lab.conv_bias), nn.Dropout(0.0)]
            if lab.large:
                modules.append(nn.Sequential(Transposed(), nn.LayerNorm(dim), Transposed()))
            elif i == 0:
                modules.append(nn.GroupNorm(dim, dim))
            self.conv_layers.append(nn.Sequential(*modules, nn.GELU()))
            previous = dim

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        x = waves[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, lab: Lab, first: bool) -> None:
        super().__init__()
        self.lab = lab
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            self.add_module(name, nn.Linear(lab.width, lab.width))
        if lab.family == "wavlm":
            if first:
                self.relative_attention_bias = nn.Embedding(lab.buckets, lab.heads)
            self.grep_linear = nn.Linear(lab.width // lab.heads, 8)
            self.grep_a = nn.Parameter(1 + 0.1 * torch.randn(1, lab.heads, 1, 1))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, frames, width = x.shape
        shape = batch, frames, self.lab.heads, width // self.lab.heads
        q, k, v = (getattr(self, f"{kind}_proj")(x).view(shape).transpose(1, 2) for kind in "qkv")
        scores = q @ k.transpose(-2, -1) / math.sqrt(shape[-1])
        if self.lab.family == "wavlm":
            if bias is None:
                bias = self.relative_attention_bias(self._buckets(frames)).permute(2, 0, 1)[None]
            scores = scores + self._gate(x.view(shape).transpose(1, 2)) * bias
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, frames, width)
        return self.out_proj(mixed), bias  # type: ignore[operator]

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        sums = self.grep_linear(x).view(*x.shape[:-1], 2, 4).sum(-1)
        a, b = torch.sigmoid(sums).chunk(2, dim=-1)
        gate: torch.Tensor = a * (b * self.grep_a - 1.0) + 2.0
        return gate

    def _buckets(self, frames: int) -> torch.Tensor:
        """T5's buckets: exact near by, logarithmic further off, one half for each direction."""
        half = self.lab.buckets // 2
        exact = half // 2
        distance = torch.arange(frames)[None] - torch.arange(frames)[:, None]
        far = exact + torch.log(distance.abs().clamp(min=1) / exact) / math.log(self.lab.distance / exact) * (
            half - exact
        )
        near = torch.where(distance.abs() < exact, distance.abs(), far.long().clamp(max=half - 1))
        return near + half * (distance > 0)


class Layer(nn.Module):
    def __init__(self, lab: Lab, first: bool) -> None:
        super().__init__()
        self.first_norm = lab.large
        self.self_attn = Attention(lab, first)
        self.self_attn_layer_norm = nn.LayerNorm(lab.width)
        self.fc1 = nn.Linear(lab.width, lab.inner)
        self.fc2 = nn.Linear(lab.inner, lab.width)
        self.final_layer_norm = nn.LayerNorm(lab.width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        def feed_forward(y: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc2(functional.gelu(self.fc1(y)))
            return out

        if self.first_norm:
            attended, bias = self.self_attn(self.self_attn_layer_norm(x), bias)
            x = x + attended
            return x + feed_forward(self.final_layer_norm(x)), bias
        attended, bias = self.self_attn(x, bias)
        x = self.self_attn_layer_norm(x + attended)
        return self.final_layer_norm(x + feed_forward(x)), bias


class Encoder(nn.Module):
    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.first_norm = lab.large
        if lab.batch_norm:
            convolution = nn.Conv1d(
                lab.width, lab.width, lab.conv_pos, padding=lab.conv_pos // 2, groups=lab.conv_pos_groups
            )
            self.pos_conv = nn.Sequential(nn.BatchNorm1d(lab.width), convolution, SamePad(), nn.GELU())
        else:
            self.pos_conv = nn.Sequential(WeightNormConv(lab), SamePad(), nn.GELU())
        self.layers = nn.ModuleList(Layer(lab, i == 0) for i in range(lab.layers))
        self.layer_norm = nn.LayerNorm(lab.width)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.first_norm:
            x = self.layer_norm(x)
        states, bias = [x], None
        for layer in self.layers:
            x, bias = layer(x, bias)
            states.append(x)
        if self.first_norm:
            states[-1] = self.layer_norm(x)
        return states


class Quantizer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vars = nn.Parameter(torch.rand(1, 2 * 8, 8))
        self.weight_proj = nn.Linear(dim, 2 * 8)


class LabModel(nn.Module):
    """The whole pre-trained model, heads of pre-training included."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab, dim = lab, lab.conv[-1][0]
        if lab.family == "decoar2":
            self.post_extract_proj = nn.Linear(80, lab.width)
            self.encoder = Encoder(lab)
            return
        self.mask_emb = nn.Parameter(torch.rand(lab.width))
        self.feature_extractor = ConvExtractor(lab)
        self.post_extract_proj = nn.Linear(dim, lab.width)
        if lab.family == "wav2vec2":
            self.quantizer = Quantizer(dim)
            self.project_q = nn.Linear(16, 8)
            self.final_proj = nn.Linear(lab.width, 8)
        if lab.family == "hubert":
            self.label_embs_concat = nn.Parameter(torch.rand(12, 8))
            self.final_proj = nn.Linear(lab.width, 8)
        self.encoder = Encoder(lab)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, waves: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states: the input of the first layer, then the output of each; each (batch, frames, width)."""
        states: list[torch.Tensor] = self.encoder(
            self.post_extract_proj(self.layer_norm(self.feature_extractor(waves)))
        )
        return states


def build_lab(lab: Lab, seed: int = 0) -> LabModel:
    """A model with random weights, norms and running statistics included."""
    torch.manual_seed(seed)
    model = LabModel(lab).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def shaken(weights: dict[str, torch.Tensor], seed: int = 1, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """A fine-tune: each weight moved a little, heads of pre-training left as they were."""
    torch.manual_seed(seed)
    still = ("final_proj", "label_embs", "quantizer", "project_q")
    return {
        name: tensor.clone()
        if name.startswith(still) or not tensor.is_floating_point()
        else tensor + scale * torch.randn_like(tensor)
        for name, tensor in weights.items()
    }


BASE = {family: Lab(family) for family in ("hubert", "wav2vec2", "wavlm", "decoar2")}
LARGE = {family: Lab(family, large=True, conv_bias=True) for family in ("hubert", "wav2vec2", "wavlm")}
LABS = {
    "HuBERT": BASE["hubert"],
    "HuBERT with layer norm": LARGE["hubert"],
    "HuBERT with batch norm": Lab("hubert", batch_norm=True),
    "wav2vec 2.0": BASE["wav2vec2"],
    "wav2vec 2.0 with layer norm": LARGE["wav2vec2"],
    "WavLM": BASE["wavlm"],
    "WavLM with layer norm": LARGE["wavlm"],
}
"""Every variant that transformers has a class for."""
