"""Which part of a speech encoder a tensor belongs to, told from its name in transformers' naming."""

from __future__ import annotations

import re
from dataclasses import dataclass

PARTS = ("cnn", "projection", "pos_conv", "layers", "final_norm", "other", "head")
"""From the waveform up: the convolutional feature extractor, the projection to the model's width, the positional
convolution, the transformer layers, the norm after them, whatever is none of these, and heads (of a task, or of
pre-training)."""

STACKS = ("encoder", "decoder")

HEADS = frozenset(
    "lm_head ctc_head ctc_proj classifier projector proj_out score tdnn objective layer_weights "  # tasks
    "quantizer project_q project_hid final_proj label_embs_concat target_glu".split()  # pre-training
)
"""First words of names that are heads wherever they stand, bare models' own included."""

_WEIGHT_NORM = re.compile(r"parametrizations\.([^.]+)\.original([01])$")
_LAYER = re.compile(r"(?:(encoder|decoder)\.)?(?:layers|layer|blocks|transformer\.layers)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the model a tensor stands."""

    part: str
    stack: str
    """`encoder` or `decoder`; empty for what stands before, beside or after them."""
    layer: int | None = None
    """Index in its stack, from 0; None outside of the layers."""


def canonical(name: str) -> str:
    """The name with weight norm written the old way: `weight_g`, `weight_v`.

    transformers 4.46 writes `parametrizations.weight.original0` and `original1` for the same two tensors, 5.x writes
    either, after what it loaded (transformers issues 26796, 33995).
    """
    return _WEIGHT_NORM.sub(lambda found: f"{found[1]}_{'gv'[int(found[2])]}", name)


def is_head(relative: str) -> bool:
    """Whether a name inside the backbone's prefix is a head all the same."""
    return relative.partition(".")[0] in HEADS


def place_of(relative: str) -> Place:
    """Where a tensor of the backbone stands; `relative` is its canonical name without the model's prefix."""
    layer = _LAYER.match(relative)
    if layer:
        return Place("layers", layer[1] or "encoder", int(layer[2]))
    first = relative.partition(".")[0]
    stack = first if first in STACKS else ""
    inner = relative.removeprefix(f"{stack}.") if stack else relative
    if first == "feature_extractor" or (inner.startswith(("conv1.", "conv2.")) and stack != "decoder"):
        return Place("cnn", stack)
    if first == "feature_projection":
        return Place("projection", stack)
    if inner.startswith("pos_conv"):
        return Place("pos_conv", stack)
    if inner.startswith("layer_norm.") and (stack or first == "layer_norm"):
        return Place("final_norm", stack)
    return Place("other", stack)
