"""Maps the names of openai-whisper, which ESPnet and S3PRL kept, to those of transformers' Whisper.

Sources: openai-whisper's whisper/model.py and transformers' convert_openai_to_hf.py. transformers' `proj_out` is the
embedding of the tokens and has no name of its own here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.layouts.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = "openai-whisper"

MARK = re.compile(r"(?P<root>(?:.+?\.)??)(?:(?:en|de)coder\.)?blocks\.\d+\.attn\.query\.")
"""A name that only this layout has; of an encoder or a decoder alone, nothing stands before `blocks`."""

IS_ENCODER = False
"""The root may be that of encoder and decoder."""

BESIDE = Table(())

_ENCODER = Table.parse("""
    positional_embedding     embed_positions.weight
    ln_post                  layer_norm
    blocks.*                 layers.*
    blocks.*.attn_ln         layers.*.self_attn_layer_norm
    blocks.*.attn.query      layers.*.self_attn.q_proj
    blocks.*.attn.key        layers.*.self_attn.k_proj
    blocks.*.attn.value      layers.*.self_attn.v_proj
    blocks.*.attn.out        layers.*.self_attn.out_proj
    blocks.*.mlp_ln          layers.*.final_layer_norm
    blocks.*.mlp.0           layers.*.fc1
    blocks.*.mlp.2           layers.*.fc2
""")
_DECODER = Table(tuple(row for row in _ENCODER.rows if row[0] != "ln_post")) + Table.parse("""
    token_embedding          embed_tokens
    ln                       layer_norm
    blocks.*.cross_attn_ln   layers.*.encoder_attn_layer_norm
    blocks.*.cross_attn.query  layers.*.encoder_attn.q_proj
    blocks.*.cross_attn.key    layers.*.encoder_attn.k_proj
    blocks.*.cross_attn.value  layers.*.encoder_attn.v_proj
    blocks.*.cross_attn.out    layers.*.encoder_attn.out_proj
""")


def _within(module: str, half: Table) -> Table:
    return Table(tuple((f"{module}.{ours}", f"{module}.{theirs}") for ours, theirs in half.rows))


_BOTH = _within("encoder", _ENCODER) + _within("decoder", _DECODER)


def table(names: Collection[str]) -> Table:
    """Return the table for a model with these names, in either layout, without prefix; or for its encoder or decoder.

    Of these two only the decoder attends to another module.
    """
    if any(name.startswith(("encoder.", "decoder.")) for name in names):
        return _BOTH
    return _DECODER if any(".cross_attn." in name or ".encoder_attn." in name for name in names) else _ENCODER
