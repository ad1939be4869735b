"""Derives the config.json that transformers needs from a lab's configuration and from the shapes of the tensors.

Shapes come first; the configuration adds what no shape shows (strides, attention heads, where norms are).
Sources: transformers' configuration_{hubert,wav2vec2,wavlm}.py, fairseq's Wav2Vec2Config and HubertConfig.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError
from speechft_merge.layouts.family import family_of
from speechft_merge.layouts.heads import task_of
from speechft_merge.layouts.structure import blocks_of, locate
from speechft_merge.layouts.whisper_configuration import derive_whisper, derive_whisper_extractor

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shapes = Mapping[str, tuple[int, ...]]
    Settings = Mapping[str, Any]

WHISPER = "whisper"
DECOAR2 = "decoar2"
"""What transformers would call it if it had it."""
CLASSES = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}
"""model_type -> how transformers' classes of it begin."""

_RATE = 16_000
"""Samples a second of every published model."""

MAX_TEXT = 1000
"""Most characters of `conv_feature_layers`."""
MAX_CONVOLUTIONS = 64

_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Width -> attention heads, in every published model of these widths."""
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
"""Of every published model that downsamples 320-fold."""
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "swish": "swish"}

_DROPOUTS = {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "feat_proj_dropout",
    "encoder_layerdrop": "layerdrop",
}


def derive_config(model_type: str, shapes: Shapes, settings: Settings) -> dict[str, Any]:
    """Derive the config.json of a HuBERT, wav2vec 2.0, WavLM, Whisper or DeCoAR 2.0 model.

    Args:
        model_type: `hubert`, `wav2vec2`, `wavlm`, `whisper` or `decoar2`.
        shapes: by transformers' names without prefix, heads among them.
        settings: the lab's configuration of the model, by its own names; may be empty.

    Raises:
        CheckpointError: transformers has no such model, or a setting is in neither of the two.
    """
    try:
        if model_type == WHISPER:
            return derive_whisper(shapes, settings)
        if model_type == DECOAR2:
            return _derive_decoar2(shapes, settings)
        return _derive(model_type, shapes, settings)
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError("the shapes of its tensors do not fit its family") from error


def _derive(model_type: str, shapes: Shapes, settings: Settings) -> dict[str, Any]:
    if model_type not in CLASSES:
        raise CheckpointError(f"no config.json can be derived for a model of type {model_type}")
    if settings.get("layer_type", "transformer") != "transformer":
        raise CheckpointError(f"transformers has no class for layers of type {settings['layer_type']!s:.40}")
    missing = [name for name in _NEEDED if name not in shapes]
    if missing:
        raise CheckpointError(f"transformers has no class for this model: it has no {missing[0]}")
    return {
        "architectures": [CLASSES[model_type] + task_of(shapes)],
        "model_type": model_type,
        **_transformer(shapes, settings),
        **_convolutions(shapes, settings),
        **_relative_position(shapes, settings),
        **({"feat_proj_layer_norm": False} if "feature_projection.layer_norm.weight" not in shapes else {}),
        **_quantizer(shapes, settings),
        **({"vocab_size": shapes["lm_head.weight"][0]} if "lm_head.weight" in shapes else {}),
    }


def _transformer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    """Return the settings of the positional convolution and the blocks, which all of these families have."""
    hidden = shapes["encoder.layer_norm.weight"][0]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": len(blocks_of(locate(shapes).values()).get("encoder", ())),
        "num_attention_heads": _heads(hidden, shapes, settings),
        "intermediate_size": shapes["encoder.layers.0.feed_forward.intermediate_dense.weight"][0],
        "hidden_act": _activation(settings),
        **_position(hidden, shapes),
        "do_stable_layer_norm": bool(settings.get("layer_norm_first", _has_layer_norm(shapes))),
        **{
            theirs: settings[ours] for ours, theirs in _DROPOUTS.items() if isinstance(settings.get(ours), (int, float))
        },
    }


def _derive_decoar2(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    bands = shapes["feature_projection.projection.weight"][1]
    return {"model_type": DECOAR2, "input_dim": bands, **_transformer(shapes, settings)}


_NEEDED = (
    "encoder.layer_norm.weight",
    "encoder.layers.0.feed_forward.intermediate_dense.weight",
    "feature_extractor.conv_layers.0.conv.weight",
    "feature_projection.projection.weight",
)


def derive_extractor(shapes: Shapes, model: Settings, task: Settings) -> dict[str, Any]:
    """Derive the preprocessor_config.json: how waveforms are prepared."""
    if "encoder.conv1.weight" in shapes:
        return derive_whisper_extractor(shapes)
    if family_of(shapes).model_type == DECOAR2:
        bands = shapes["feature_projection.projection.weight"][1]
        return {"feature_extractor_type": "Decoar2FeatureExtractor", "feature_size": bands, "sampling_rate": _RATE}
    normalised = task.get("normalize", model.get("normalize", _has_layer_norm(shapes)))
    rate = task.get("sample_rate")
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": rate if isinstance(rate, int) and rate > 0 else _RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": bool(normalised),
        "return_attention_mask": _has_layer_norm(shapes),
    }


def parse_convolutions(text: str) -> list[tuple[int, int, int]]:
    """Parse (channels, kernel, stride) of each convolution in `[(512,10,5)] + [(512,3,2)] * 4`, without running it.

    Raises:
        CheckpointError: it is not such an expression.
    """
    try:
        layers = _evaluate(ast.parse(text.strip(), mode="eval").body) if len(text) <= MAX_TEXT else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        layers = None
    if not isinstance(layers, list) or not all(map(_is_convolution, layers)):
        raise CheckpointError(f"conv_feature_layers {text[:80]!r} is not a list of (channels, kernel, stride)")
    return layers


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, tuple) and len(layer) == 3 and all(isinstance(size, int) for size in layer)


def _evaluate(node: ast.expr) -> Any:
    """Evaluate lists and tuples of whole numbers, added and repeated; raise ValueError for anything else."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item) for item in items)
        case ast.List(elts=items):
            return [_evaluate(item) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            a, b = _evaluate(left), _evaluate(right)
            if isinstance(a, list) and isinstance(b, list):
                return a + b
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            a, b = _evaluate(left), _evaluate(right)
            if isinstance(a, int):
                a, b = b, a
            if isinstance(a, list) and isinstance(b, int) and len(a) * b <= MAX_CONVOLUTIONS:
                return a * b
    raise ValueError("not a list of convolutions")


def _has_layer_norm(shapes: Shapes) -> bool:
    """Return whether every convolution has a layer norm; else the first has a group norm."""
    return "feature_extractor.conv_layers.1.layer_norm.weight" in shapes


def _convolutions(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    weights = {
        int(found[1]): shape
        for name, shape in shapes.items()
        if (found := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight", name)) and len(shape) == 3
    }
    kernels = tuple(weights[i][2] for i in sorted(weights))
    stated = settings.get("conv_feature_layers")
    if isinstance(stated, str):
        strides = tuple(stride for *_, stride in parse_convolutions(stated))
    elif kernels == _KERNELS:
        strides = _STRIDES
    else:
        raise CheckpointError(
            "the strides of its convolutions are not known: its file has no configuration, and its kernels "
            f"{list(kernels)} are not the usual ones"
        )
    if len(strides) != len(kernels):
        raise CheckpointError(f"its configuration has {len(strides)} convolutions, its tensors {len(kernels)}")
    return {
        "conv_dim": [weights[i][0] for i in sorted(weights)],
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in shapes,
        "feat_extract_norm": "layer" if _has_layer_norm(shapes) else "group",
        "feat_extract_activation": "gelu",
    }


def _position(hidden: int, shapes: Shapes) -> dict[str, Any]:
    stem = "encoder.pos_conv_embed."
    batch_norm = f"{stem}batch_norm.weight" in shapes
    kernel = shapes.get(f"{stem}conv.weight_v", shapes.get(f"{stem}conv.weight"))
    if kernel is None or len(kernel) != 3 or not kernel[1]:
        raise CheckpointError("transformers has no class for a model without a positional convolution")
    return {
        "num_conv_pos_embeddings": kernel[2],
        "num_conv_pos_embedding_groups": hidden // kernel[1],
        **({"conv_pos_batch_norm": True} if batch_norm else {}),
    }


def _heads(hidden: int, shapes: Shapes, settings: Settings) -> int:
    gate = shapes.get("encoder.layers.0.attention.gru_rel_pos_const")
    stated = settings.get("encoder_attention_heads")
    heads = gate[1] if gate and len(gate) == 4 else stated if isinstance(stated, int) else _HEADS.get(hidden)
    if not heads or hidden % heads:
        raise CheckpointError(
            f"the number of attention heads is not known: its file has no configuration, and a width of {hidden} is "
            "not a usual one"
        )
    return heads


def _activation(settings: Settings) -> str:
    stated = str(settings.get("activation_fn", "gelu"))
    if stated not in _ACTIVATIONS:
        raise CheckpointError(f"its activation {stated[:40]!r} has no name in transformers")
    return _ACTIVATIONS[stated]


def _relative_position(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    table = shapes.get("encoder.layers.0.attention.rel_attn_embed.weight")
    distance = settings.get("max_distance")
    distance = distance if isinstance(distance, int) else 800  # in both published sizes
    return {"num_buckets": table[0], "max_bucket_distance": distance} if table else {}


def _quantizer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    if task_of(shapes) != "ForPreTraining":
        return {}
    _, entries, dim = shapes["quantizer.codevectors"]
    groups = settings.get("latent_groups", 2)
    return {
        "num_codevector_groups": groups,
        "num_codevectors_per_group": entries // groups,
        "codevector_dim": dim * groups,
        "proj_codevector_dim": shapes["project_hid.weight"][0],
    }
