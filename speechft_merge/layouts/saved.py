"""Maps the names under which transformers 5 saves AST and Mimi to those that their classes have in memory.

save_pretrained writes what earlier versions called them; a training loop of one's own saves what is in memory. Source:
transformers' conversion_mapping.py (`ViTModel`, of which AST is one, and `MimiModel`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.layouts.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = "transformers"
"""Its classes load either."""

MARK = re.compile(
    r"(?P<root>(?:.+\.)?)(?:encoder\.layer\.\d+\.layernorm_before\.|(?<!\bencoder\.)encoder_transformer\.layers\.\d+\.)"
)
"""A name that only files of the two have."""

IS_ENCODER = False

BESIDE = Table(())

_AST = Table.parse("""
    encoder.layer.*                            layers.*
    encoder.layer.*.attention.attention.query  layers.*.attention.q_proj
    encoder.layer.*.attention.attention.key    layers.*.attention.k_proj
    encoder.layer.*.attention.attention.value  layers.*.attention.v_proj
    encoder.layer.*.attention.output.dense     layers.*.attention.o_proj
    encoder.layer.*.intermediate.dense         layers.*.mlp.fc1
    encoder.layer.*.output.dense               layers.*.mlp.fc2
""")
_MIMI = Table.parse("""
    encoder.layers       encoder.encoder_seanet.layers
    encoder_transformer  encoder.encoder_transformer
    downsample           encoder.downsample
    decoder.layers       decoder.decoder_seanet.layers
    decoder_transformer  decoder.decoder_transformer
    upsample             decoder.upsample
""")
_BOTH = _AST + _MIMI


def table(names: Collection[str]) -> Table:
    """Return the table for a model with these names, in either form, without prefix."""
    return _BOTH
