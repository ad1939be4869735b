"""Maps fairseq2's names of w2v-BERT, whose file is `conformer_shaw.pt`, to those of transformers' Wav2Vec2Bert.

Source: transformers' convert_wav2vec2_seamless_checkpoint.py. SeamlessM4T has its blocks in `encoder.inner`. fairseq2's
other models are not mapped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.layouts.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = "fairseq2"

MARK = re.compile(r"(?P<root>(?:.+\.)?)encoder\.(?:inner\.)?layers\.\d+\.ffn1\.inner_proj\.")
"""A name that only this layout has; Conformers of a toolkit have other words for the same matrix."""

IS_ENCODER = True

BESIDE = Table(())

_BLOCK = Table.parse("""
    layer_norm                  final_layer_norm
    conv_layer_norm             conv_module.layer_norm
    conv                        conv_module
    conv.layer_norm             conv_module.depthwise_layer_norm
    ffn1.inner_proj             ffn1.intermediate_dense
    ffn1.output_proj            ffn1.output_dense
    ffn2.inner_proj             ffn2.intermediate_dense
    ffn2.output_proj            ffn2.output_dense
    self_attn.q_proj            self_attn.linear_q
    self_attn.k_proj            self_attn.linear_k
    self_attn.v_proj            self_attn.linear_v
    self_attn.output_proj       self_attn.linear_out
    self_attn.sdpa.rel_k_embed  self_attn.distance_embedding
    self_attn.sdpa.r_proj       self_attn.linear_pos
    self_attn.sdpa.u_bias       self_attn.pos_bias_u
    self_attn.sdpa.v_bias       self_attn.pos_bias_v
""")
_AROUND = Table.parse("""
    masker.temporal_mask_embed                masked_spec_embed
    encoder_frontend.post_extract_layer_norm  feature_projection.layer_norm
    encoder_frontend.model_dim_proj           feature_projection.projection
    encoder.proj1                             intermediate_ffn.intermediate_dense
    encoder.proj2                             intermediate_ffn.output_dense
""")


def table(names: Collection[str]) -> Table:
    """Return the table for a model with these names, in either of the two layouts, without prefix."""
    blocks = (
        "encoder.inner.layers.*" if any(name.startswith("encoder.inner.") for name in names) else "encoder.layers.*"
    )
    rows = [(f"{blocks}.{ours}", f"encoder.layers.*.{theirs}") for ours, theirs in _BLOCK.rows]
    return Table((*rows, (blocks, "encoder.layers.*"))) + _AROUND
