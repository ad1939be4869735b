"""The rows of the tables: what they are called, in which order they stand, and what is a number in them."""

from __future__ import annotations

import json

import torch
from models import build, checkpoint_of, fine_tune

from speechft_merge.layouts.structure import locate
from speechft_merge.plan.plan import make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.record.layers import LayerKey, LayerRow, summarise_layers


def rows_of(family: str, kind: str, *rules: str) -> dict[str, LayerRow]:
    base = build(family)
    other = fine_tune(base, family, kind)
    recipe = Recipe(layer_alpha=tuple(map(parse_rule, rules)))
    plan = make_plan(checkpoint_of(base.state_dict()), [checkpoint_of(other.state_dict())], recipe)
    return {row.key.label: row for row in summarise_layers(plan)}


def test_rows_go_from_the_waveform_up_the_encoder_before_the_decoder_and_heads_last() -> None:
    assert [*rows_of("Hubert", "ForCTC")] == [
        "cnn", "projection", "pos_conv", "0", "1", "final_norm", "other", "head"
    ]  # fmt: skip
    assert [*rows_of("Whisper", "ForConditionalGeneration")] == [
        "cnn", "0", "1", "final_norm", "other", "decoder.0", "decoder.1", "decoder.final_norm", "decoder.other", "head"
    ]  # fmt: skip


def test_a_block_is_an_integer_and_a_part_outside_of_the_blocks_is_named() -> None:
    keys = {
        "encoder.layers.3.fc1.weight": {"layer": 3, "part": "layers", "stack": "encoder"},
        "decoder.layers.3.fc1.weight": {"layer": 3, "part": "layers", "stack": "decoder"},
        "encoder.layer_norm.weight": {"layer": None, "part": "final_norm", "stack": "encoder"},
        "layer_norm.weight": {"layer": None, "part": "final_norm", "stack": "encoder"},
        "feature_extractor.conv_layers.0.conv.weight": {"layer": None, "part": "cnn", "stack": "encoder"},
    }
    found = locate(dict.fromkeys(keys, (4, 4)))
    assert {name: LayerKey.of(location).to_json() for name, location in found.items()} == keys


def test_alphas_are_numbers_and_null_where_there_are_none_or_several() -> None:
    rows = rows_of("Hubert", "ForCTC", "cnn=0", "0=0.5", "**.layers.1.**.bias=0.125")
    found = {label: (row.alpha, row.alpha_min, row.alpha_max) for label, row in rows.items()}
    assert found["cnn"] == (0, 0, 0)
    assert found["0"] == (0.5, 0.5, 0.5)
    assert found["1"] == (None, 0.125, 0.25)
    assert found["head"] == (None, None, None)
    assert [rows[label].alpha_cell for label in ("cnn", "0", "1", "head")] == ["0", "0.5", "0.125 to 0.25", "-"]
    document = json.loads(json.dumps(rows["1"].to_json(), allow_nan=False))
    assert (document["alpha"], document["alpha_min"], document["alpha_max"]) == (None, 0.125, 0.25)
    assert document["drift"] is None


def test_tensors_that_no_row_of_their_own_has_still_count_to_one() -> None:
    rows = rows_of("Hubert", "ForCTC")
    assert sum(row.parameters for row in rows.values()) == sum(map(torch.numel, build("Hubert").state_dict().values()))
