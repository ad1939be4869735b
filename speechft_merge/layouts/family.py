"""Detects the family and size of a speech encoder from transformers' names of its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.layouts.structure import blocks_of, locate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

TITLES = {
    "hubert": "HuBERT",
    "wav2vec2": "wav2vec 2.0",
    "wavlm": "WavLM",
    "decoar2": "DeCoAR 2.0",
    "data2vec-audio": "data2vec",
    "wav2vec2-bert": "w2v-BERT",
    "whisper": "Whisper",
}
"""transformers' `model_type` (DeCoAR 2.0 has none) -> what its authors call it."""

OWN_PREFIX = {
    family: family.replace("-", "_") + "."
    for family in "hubert wav2vec2 wavlm data2vec-audio unispeech unispeech-sat sew sew-d wav2vec2-conformer "
    "wav2vec2-bert".split()
}
"""Families whose classes with a head have the family's name before the encoder's names -> that prefix."""

_SIZES = {(12, 768): "Base", (24, 1024): "Large", (48, 1280): "X-Large", (48, 1920): "2B"}
_WHISPER = {(4, 384): "tiny", (6, 512): "base", (12, 768): "small", (24, 1024): "medium", (32, 1280): "large"}

_HINTS = ("hubert", "wavlm", "wav2vec2", "wav2vec", "decoar2", "data2vec")
"""What a lab's name for a model may contain: fairseq's `_name` or `arch`, S3PRL's upstream."""


class Family(NamedTuple):
    """Family and size of an encoder."""

    model_type: str | None
    """transformers' name of the family, or `decoar2`; None if unknown."""
    title: str
    """Name to show: HuBERT Base, WavLM Large."""


def family_of(shapes: Mapping[str, tuple[int, ...]], stated: str | None = None, hint: str | None = None) -> Family:
    """Detect the family and size of a model.

    Args:
        shapes: by transformers' names, without prefix for the encoder; heads may be among them.
        stated: the `model_type` of its config.json.
        hint: what a lab's configuration calls it.
    """
    model_type = stated or _by_names(shapes.keys()) or _by_hint(hint)
    blocks = blocks_of(locate(shapes).values()).get("encoder", ())
    norm = shapes.get("encoder.layer_norm.weight", shapes.get("encoder.layers.0.final_layer_norm.weight", ()))
    return Family(model_type, _title(model_type, shapes.keys(), len(blocks), norm[0] if norm else 0))


def _title(model_type: str | None, names: Collection[str], layers: int, width: int) -> str:
    if model_type is not None:
        title = TITLES.get(model_type, model_type)
    elif any(name.startswith("encoder.pos_conv_embed.") for name in names):
        title = "HuBERT or wav2vec 2.0"  # without their heads they are one architecture
    else:
        return "unknown"
    size = (_WHISPER if model_type == "whisper" else _SIZES).get((layers, width))
    if size:
        return f"{title} {size}"
    return f"{title}, {layers} layers of width {width}" if layers and width else title


def _by_names(names: Collection[str]) -> str | None:
    """Detect the family by names that only it has. HuBERT and wav2vec 2.0 differ in their pre-training heads alone."""
    firsts = {name.partition(".")[0] for name in names}
    evidence = (
        ("whisper", "encoder.conv1.weight" in names and "encoder.conv3.weight" not in names),  # Moonshine's
        ("wavlm", any(".gru_rel_pos" in name for name in names)),
        ("data2vec-audio", any(name.startswith("encoder.pos_conv_embed.layers.") for name in names)),
        ("decoar2", "encoder.pos_conv_embed.conv.bias" in names and "feature_extractor" not in firsts),
        ("wav2vec2", not firsts.isdisjoint({"quantizer", "project_q", "project_hid"})),
        ("hubert", not firsts.isdisjoint({"label_embs_concat", "final_proj"})),
        ("hubert", any(name.startswith("encoder.pos_conv_embed.batch_norm.") for name in names)),
        ("wav2vec2-bert", "encoder.layers.0.conv_module.depthwise_conv.weight" in names),
    )
    return next((family for family, seen in evidence if seen), None)


def _by_hint(hint: str | None) -> str | None:
    found = next((word for word in _HINTS if hint and word in hint.lower()), None)
    return {"wav2vec": "wav2vec2", "data2vec": "data2vec-audio"}.get(found, found) if found else None
