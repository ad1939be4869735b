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

_BLOCK = """
    {half}blocks.*            {half}layers.*
    {half}blocks.*.mlp.0      {half}layers.*.fc1
    {half}blocks.*.mlp.2      {half}layers.*.fc2
    {half}blocks.*.mlp_ln     {half}layers.*.final_layer_norm
"""
_ATTENTION = """
    {half}blocks.*.{ours}_ln     {half}layers.*.{theirs}_layer_norm
    {half}blocks.*.{ours}.query  {half}layers.*.{theirs}.q_proj
    {half}blocks.*.{ours}.key    {half}layers.*.{theirs}.k_proj
    {half}blocks.*.{ours}.value  {half}layers.*.{theirs}.v_proj
    {half}blocks.*.{ours}.out    {half}layers.*.{theirs}.out_proj
"""
_SELF = _ATTENTION.replace("{ours}", "attn").replace("{theirs}", "self_attn")
_CROSS = _ATTENTION.replace("{ours}", "cross_attn").replace("{theirs}", "encoder_attn")
_ENCODER = """
    {half}positional_embedding  {half}embed_positions.weight
    {half}ln_post               {half}layer_norm
"""
_DECODER = """
    {half}positional_embedding  {half}embed_positions.weight
    {half}token_embedding       {half}embed_tokens
    {half}ln                    {half}layer_norm
"""


def _parse(rows: str, half: str) -> Table:
    return Table.parse(rows.format(half=half)) + Table.parse((_BLOCK + _SELF).format(half=half))


def table(names: Collection[str]) -> Table:
    """Return the table for a model with these names, without prefix: both halves, or the encoder or decoder alone."""
    if any(name.startswith(("encoder.", "decoder.")) for name in names):
        return _parse(_ENCODER, "encoder.") + _parse(_DECODER + _CROSS, "decoder.")
    alone = any(name.startswith(("ln_post.", "conv1.")) for name in names)
    return _parse(_ENCODER, "") if alone else _parse(_DECODER + _CROSS, "")
