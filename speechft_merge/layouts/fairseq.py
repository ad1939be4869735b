"""Maps the names of fairseq, which S3PRL, WavLM, SPIN and DeCoAR 2.0 kept, to transformers'.

Sources: fairseq's models/wav2vec/wav2vec2.py and models/hubert/hubert.py, WavLM's WavLM.py and modules.py, and
transformers' `convert_*_original_*_checkpoint_to_pytorch.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.layouts import heads
from speechft_merge.layouts.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = "fairseq"

MARK = re.compile(r"(?P<root>(?:.+\.)?)encoder\.pos_conv\.\d+\.")
"""A name that only this layout has, in all of its models: Whisper shares those of the layers."""

IS_ENCODER = True

BESIDE = heads.FAIRSEQ

_COMMON = Table.parse("""
    mask_emb                                            masked_spec_embed
    feature_extractor.conv_layers.*.0                   feature_extractor.conv_layers.*.conv
    layer_norm                                          feature_projection.layer_norm
    post_extract_proj                                   feature_projection.projection
    encoder.layers.*.self_attn                          encoder.layers.*.attention
    encoder.layers.*.self_attn.grep_linear              encoder.layers.*.attention.gru_rel_pos_linear
    encoder.layers.*.self_attn.grep_a                   encoder.layers.*.attention.gru_rel_pos_const
    encoder.layers.*.self_attn.relative_attention_bias  encoder.layers.*.attention.rel_attn_embed
    encoder.layers.*.self_attn_layer_norm               encoder.layers.*.layer_norm
    encoder.layers.*.fc1                                encoder.layers.*.feed_forward.intermediate_dense
    encoder.layers.*.fc2                                encoder.layers.*.feed_forward.output_dense
""")

_GROUP_NORM = Table.parse("feature_extractor.conv_layers.*.2    feature_extractor.conv_layers.*.layer_norm")
_LAYER_NORM = Table.parse("feature_extractor.conv_layers.*.2.1  feature_extractor.conv_layers.*.layer_norm")

_POSITION = Table.parse("encoder.pos_conv.0  encoder.pos_conv_embed.conv")
_POSITION_BATCH_NORM = Table.parse("""
    encoder.pos_conv.0  encoder.pos_conv_embed.batch_norm
    encoder.pos_conv.1  encoder.pos_conv_embed.conv
""")
_POSITION_STACKED = Table.parse("encoder.pos_conv.*.0  encoder.pos_conv_embed.layers.*.conv")  # data2vec

_QUANTIZER = Table.parse("""
    quantizer.vars  quantizer.codevectors
    final_proj      project_hid
""")
"""wav2vec 2.0's; HuBERT's final_proj has no counterpart in transformers."""


def table(names: Collection[str]) -> Table:
    """Return the table for a model with these names, in either of the two layouts, without prefix.

    Group or layer norm in the convolutions, weight or batch norm in the positional one, and a quantizer decide.
    """
    first_norm = [name for name in names if re.match(r"feature_extractor\.conv_layers\.1\.(2\.1|layer_norm)\.", name)]
    batch_norm = [name for name in names if re.match(r"encoder\.(pos_conv\.0\.running_|pos_conv_embed\.batch)", name)]
    stacked = [name for name in names if re.match(r"encoder\.(pos_conv\.\d+\.0|pos_conv_embed\.layers)\.", name)]
    position = _POSITION_STACKED if stacked else _POSITION_BATCH_NORM if batch_norm else _POSITION
    quantizer = _QUANTIZER if any(name.startswith("project_q.") for name in names) else Table(())
    return _COMMON + (_LAYER_NORM if first_norm else _GROUP_NORM) + position + quantizer
