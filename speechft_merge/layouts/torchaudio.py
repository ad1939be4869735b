"""Maps torchaudio's names of HuBERT, wav2vec 2.0 and WavLM to transformers'.

Source: torchaudio's models/wav2vec2/components.py and its utils/import_huggingface.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speechft_merge.layouts import heads
from speechft_merge.layouts.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = "torchaudio"

MARK = re.compile(r"(?P<root>(?:.+\.)?)encoder\.transformer\.pos_conv_embed\.")
"""A name that only this layout has, in all of its models."""

PACKED = re.compile(r".+\.attention\.attention\.in_proj_(weight|bias)")
"""Query, key and value of its WavLM in one tensor, for which no other layout has a name."""
PARTS = ("q_proj", "k_proj", "v_proj")
"""What the rows of such a tensor are, by thirds."""

IS_ENCODER = True

BESIDE = Table(())

_COMMON = Table.parse("""
    encoder.feature_projection  feature_projection
    encoder.transformer         encoder
""")
_WAVLM = Table.parse("""
    encoder.transformer.layers.*.attention.attention.out_proj  encoder.layers.*.attention.out_proj
    encoder.transformer.layers.*.attention.attention.q_proj    encoder.layers.*.attention.q_proj
    encoder.transformer.layers.*.attention.attention.k_proj    encoder.layers.*.attention.k_proj
    encoder.transformer.layers.*.attention.attention.v_proj    encoder.layers.*.attention.v_proj
""")


def parts_of(packed: str) -> list[str]:
    """Return what the parts of a packed tensor are called here, beside `out_proj`."""
    stem, leaf = packed.rsplit(".in_proj_", 1)
    return [f"{stem}.{part}.{leaf}" for part in PARTS]


def table(names: Collection[str]) -> Table:
    """Return the table for a model with these names, in either of the two layouts, without prefix."""
    wavlm = any(".attention.gru_rel_pos" in name for name in names)
    old_head = any(name.startswith("encoder.readout.") for name in names)
    return _COMMON + (_WAVLM if wavlm else Table(())) + (heads.TORCHAUDIO_OLD if old_head else heads.TORCHAUDIO)
