"""Tiny models of every family that `--layer-alpha` must know, and where in them blocks, front end and stacks are.

Real classes of transformers, as they are saved, where there is one; else names and shapes after the toolkit's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from families import FAMILIES, build
from models import transformers
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from float64 import Tensors

MATRIX, SQUARE, KERNEL, WIDTH = (32, 32), (32, 32, 3, 3), (32, 32, 3), (32,)


@dataclass(frozen=True)
class Layered:
    """One family."""

    name: str
    save: Callable[[Path], None]
    """Writes a base."""
    blocks: str
    """Path of the encoder's blocks, two or more."""
    cnn: tuple[str, ...]
    """How the names of the front end begin."""
    stack: str = ""
    """Another stack, as it is selected."""
    its: tuple[str, ...] = ()
    """How its names begin."""
    text: tuple[str, ...] = ()
    """Likewise of a language model."""
    heads: tuple[str, ...] = ()


def _of(name: str) -> Callable[[Path], None]:
    family = next(family for family in FAMILIES if name in family.classes)
    return lambda folder: build(family, name).save_pretrained(folder)


def _own(name: str, **settings: Any) -> Callable[[Path], None]:
    """A class with configurations within its own."""

    def save(folder: Path) -> None:
        torch.manual_seed(0)
        kind = getattr(transformers(), name)
        kind(kind.config_class(**settings)).save_pretrained(folder)

    return save


def _named(*shapes: dict[str, tuple[int, ...]]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        folder.mkdir()
        tensors = {name: torch.randn(shape) for part in shapes for name, shape in part.items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "own"}')

    return save


def _blocks(path: str, *modules: str, count: int = 2) -> dict[str, tuple[int, ...]]:
    matrices = {f"{path}.{i}.{module}.weight": MATRIX for i in range(count) for module in modules}
    return matrices | {f"{path}.{i}.norm.bias": WIDTH for i in range(count)}


def _tensors(shape: tuple[int, ...], *names: str) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, shape)


_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TEXT = _SIZES | {"vocab_size": 60, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
_AUDIO = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 20,
}
_HALVES = {
    f"{half}_{size}": value
    for half in ("encoder", "decoder", "speech_encoder")
    for size, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 64, "intermediate_size": 64}.items()
}
_THINKER = {
    "audio_config": _AUDIO | {"output_dim": 32, "n_window": 10},
    "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32},
    "text_config": {key: value for key, value in _TEXT.items() if key != "head_dim"},
}

_SUBSAMPLING = _tensors(SQUARE, "encoder.embed.conv.0.weight", "encoder.embed.conv.2.weight")
_SUBSAMPLING |= {"encoder.embed.out.0.weight": MATRIX, "encoder.after_norm.weight": WIDTH}
_ESPNET_DECODER = _blocks("decoder.decoders", "self_attn.linear_q", "src_attn.linear_q")
_ESPNET_DECODER |= _tensors(MATRIX, "decoder.embed.0.weight", "decoder.output_layer.weight", "ctc.ctc_lo.weight")
_BRANCHES = ("attn.linear_q", "cgmlp.channel_proj1.0")
_FRONT = {f"encoder_frontend.feature_extractor.layers.{i}.conv.weight": KERNEL for i in range(2)}
_FRONT |= _tensors(KERNEL, "encoder_frontend.pos_encoder.conv.weight_v")
_FRONT |= {"encoder_frontend.post_extract_layer_norm.weight": WIDTH, "encoder_frontend.model_dim_proj.weight": MATRIX}
_FRONT |= {"encoder.layer_norm.weight": WIDTH}
_NEMO = _tensors(SQUARE, "encoder.pre_encode.conv.0.weight") | {"encoder.pre_encode.out.weight": MATRIX}
_NEMO |= _blocks("encoder.layers", "self_attn.linear_q", "feed_forward1.linear1")
_ZIPFORMER = _tensors(SQUARE, "encoder_embed.conv.0.weight", "encoder_embed.convnext.depthwise_conv.weight")
_ZIPFORMER |= _blocks("encoder.encoders.0.layers", "self_attn_weights.in_proj", "feed_forward1.in_proj")
_ZIPFORMER |= _tensors(WIDTH, "encoder.encoders.1.downsample.bias", "encoder.encoders.1.out_combiner.bypass_scale")
_ZIPFORMER |= _blocks("encoder.encoders.1.encoder.layers", "self_attn_weights.in_proj", "feed_forward1.in_proj")
_ZIPFORMER |= _tensors(MATRIX, "decoder.embedding.weight", "joiner.encoder_proj.weight", "simple_am_proj.weight")
_QWEN = _blocks("layers", "self_attn.q_proj", "mlp.up_proj", count=3) | {"embed_tokens.weight": (60, 32)}
_QWEN |= {"norm.weight": WIDTH}


def _within(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


_WHISPERS = _blocks("audio_tower.layers", "self_attn.q_proj", "fc1")
_WHISPERS |= _tensors(KERNEL, "audio_tower.conv1.weight", "audio_tower.conv2.weight")
_WHISPERS |= {"audio_tower.ln_post.weight": WIDTH, "audio_tower.proj.weight": MATRIX}

FAMILIES_BY_LAYERS: tuple[Layered, ...] = (
    Layered(
        "SEW-D", _of("SEWDForCTC"), "sew_d.encoder.encoder.layer", ("sew_d.feature_extractor.",), heads=("lm_head.",)
    ),
    Layered(
        "SpeechT5",
        _of("SpeechT5ForSpeechToText"),
        "speecht5.encoder.wrapped_encoder.layers",
        ("speecht5.encoder.prenet.feature_encoder.",),
        "decoder",
        ("speecht5.decoder.",),
    ),
    Layered(
        "AST",
        _of("ASTForAudioClassification"),
        "audio_spectrogram_transformer.encoder.layer",
        ("audio_spectrogram_transformer.embeddings.patch_embeddings.",),
        heads=("classifier.",),
    ),
    Layered(
        "Moonshine",
        _of("MoonshineForConditionalGeneration"),
        "model.encoder.layers",
        tuple(f"model.encoder.{name}." for name in ("conv1", "conv2", "conv3", "groupnorm")),
        "decoder",
        ("model.decoder.",),
    ),
    Layered("Parakeet", _of("ParakeetForCTC"), "encoder.layers", ("encoder.subsampling.",), heads=("ctc_head.",)),
    Layered("w2v-BERT", _of("Wav2Vec2BertForCTC"), "wav2vec2_bert.encoder.layers", (), heads=("lm_head.",)),
    Layered(
        "SeamlessM4T",
        _own("SeamlessM4TForSpeechToText", vocab_size=60, hidden_size=32, **_HALVES),
        "speech_encoder.encoder.layers",
        (),
        "text_decoder",
        ("text_decoder.",),
        heads=("lm_head.",),
    ),
    Layered(
        "OmniASR",
        _of("OmniASRForCTC"),
        "model.audio_tower.layers",
        ("model.audio_tower.subsampling.",),
        heads=("ctc_head.",),
    ),
    Layered(
        "Qwen2-Audio",
        _own("Qwen2AudioForConditionalGeneration", audio_config=_AUDIO, text_config=_TEXT | {"model_type": "qwen2"}),
        "audio_tower.layers",
        ("audio_tower.conv",),
        text=("language_model.",),
    ),
    Layered(
        "Voxtral",
        _own(
            "VoxtralForConditionalGeneration",
            audio_config=_SIZES | {"vocab_size": 60, "num_mel_bins": 8, "max_source_positions": 20},
            text_config=_TEXT | {"model_type": "llama"},
        ),
        "audio_tower.layers",
        ("audio_tower.conv",),
        text=("language_model.",),
    ),
    Layered(
        "the thinker of Qwen2.5-Omni",
        _own("Qwen2_5OmniThinkerForConditionalGeneration", **_THINKER),
        "audio_tower.layers",
        ("audio_tower.conv",),
        "visual",
        ("visual.",),
        text=("model.", "lm_head."),
    ),
    Layered(
        "its names within the whole",
        _named(_within("thinker.", _WHISPERS | _within("model.", _QWEN) | {"lm_head.weight": (60, 32)})),
        "thinker.audio_tower.layers",
        ("thinker.audio_tower.conv",),
        text=("thinker.model.", "thinker.lm_head."),
    ),
    Layered(
        "ESPnet's Conformer",
        _named(_SUBSAMPLING, _blocks("encoder.encoders", "self_attn.linear_q", "feed_forward.w_1"), _ESPNET_DECODER),
        "encoder.encoders",
        ("encoder.embed.",),
        "decoder",
        ("decoder.",),
    ),
    Layered(
        "ESPnet's E-Branchformer",
        _named(_SUBSAMPLING, _blocks("encoder.encoders", *_BRANCHES), _ESPNET_DECODER),
        "encoder.encoders",
        ("encoder.embed.",),
        "decoder",
        ("decoder.",),
    ),
    Layered(
        "XEUS",
        _named(
            {f"frontend.layers.{i}.conv.weight": KERNEL for i in range(2)},
            {"preencoder.linear_out.weight": MATRIX, "encoder.embed.0.weight": MATRIX, "encoder.embed.1.weight": WIDTH},
            {"encoder.embed.4.convs.0.weight_v": KERNEL, "encoder.embed.4.convs.0.weight_g": (1, 1, 3)},
            _blocks("encoder.encoders", *_BRANCHES),
            {"encoder.after_norm.weight": WIDTH, "mask_emb": WIDTH},
        ),
        "encoder.encoders",
        ("frontend.",),
    ),
    Layered(
        "data2vec 2",
        _named(
            _within(
                "modality_encoders.AUDIO.",
                {f"local_encoder.conv_layers.{i}.0.weight": KERNEL for i in range(2)}
                | {"project_features.2.weight": MATRIX, "relative_positional_encoder.1.0.weight": KERNEL}
                | {"context_encoder.norm.weight": WIDTH, "decoder.blocks.0.0.weight": KERNEL},
            ),
            _blocks("blocks", "attn.qkv", "mlp.fc1"),
        ),
        "blocks",
        ("modality_encoders.AUDIO.local_encoder.",),
    ),
    Layered(
        "icefall's Zipformer", _named(_ZIPFORMER), "encoder.encoders", ("encoder_embed.",), "decoder", ("decoder.",)
    ),
    Layered(
        "fairseq2",
        _named(_FRONT, _blocks("encoder.layers", "self_attn.q_proj", "ffn.inner_proj"), {"final_proj.weight": MATRIX}),
        "encoder.layers",
        ("encoder_frontend.feature_extractor.",),
        heads=("final_proj.",),
    ),
    Layered(
        "fairseq2 of omniASR with a decoder",
        _named(
            _FRONT,
            _blocks("encoder.layers", "self_attn.q_proj", "ffn.inner_proj"),
            _blocks("llama_decoder.layers", "self_attn.q_proj", "ffn.inner_proj"),
            {"llama_decoder.layer_norm.weight": WIDTH, "encoder_proj.weight": MATRIX, "text_frontend.weight": (60, 32)},
        ),
        "encoder.layers",
        ("encoder_frontend.feature_extractor.",),
        "llama_decoder",
        ("llama_decoder.",),
    ),
    Layered(
        "fairseq2 of SeamlessM4T",
        _named(
            _blocks("encoder.inner.layers", "self_attn.q_proj", "ffn1.inner_proj"),
            {"encoder_frontend.model_dim_proj.weight": MATRIX, "encoder.proj1.weight": MATRIX},
        ),
        "encoder.inner.layers",
        (),
    ),
    Layered(
        "NeMo",
        _named(_NEMO, _tensors(MATRIX, "decoder.prediction.embed.weight", "joint.enc.weight")),
        "encoder.layers",
        ("encoder.pre_encode.",),
        "decoder",
        ("decoder.",),
    ),
    Layered(
        "NeMo beside a language model",
        _named(
            _within("perception.", _NEMO | {"proj.weight": MATRIX}),
            _within("llm.model.", _QWEN),
            {"llm.lm_head.weight": (60, 32)},
        ),
        "perception.encoder.layers",
        ("perception.encoder.pre_encode.",),
        text=("llm.",),
    ),
)


def weights(folder: Path) -> Tensors:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)
