"""How much of each stack is mixed: what one side lacks is refused in part, noted as a whole, and always said."""

from __future__ import annotations

import re

import pytest
from models import build
from plan_pairs import Tensors, findings, moved, refusals, without

from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED, Level

HUBERT: Tensors = build("Hubert").state_dict()
WHISPER: Tensors = without(build("Whisper", "ForConditionalGeneration").state_dict(), "proj_out")


def deeper(layers: int) -> Tensors:
    return build("Hubert", num_hidden_layers=layers).state_dict()


@pytest.mark.parametrize("keep_head", [False, True])
def test_of_whole_models_nothing_is_found(keep_head: bool) -> None:
    assert findings(HUBERT, moved(HUBERT), keep_head=keep_head) == ()
    assert findings(WHISPER, moved(WHISPER), keep_head=keep_head) == ()


LACKING = {
    "a kind of weight": (r"layers\.\d\.attention\.q_proj\.weight", "encoder.layers.*.attention.q_proj.weight' (2)"),
    "one tensor": (r"layers\.1\.final_layer_norm\.bias", "1 tensor such as 'encoder.layers.1.final_layer_norm.bias'"),
    "the positional kernel": (r"pos_conv_embed\.conv\.param", "original0' (1)"),
    "a convolution": (r"conv_layers\.3\.", "the cnn in part only"),
}


@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize("keep_head", [False, True])
def test_a_stack_that_one_side_has_in_part_is_refused_with_pattern_and_example(lacking: str, keep_head: bool) -> None:
    pattern, told = LACKING[lacking]
    part = {name: tensor for name, tensor in moved(HUBERT).items() if not re.search(pattern, name)}
    base, finetuned = (part, HUBERT) if keep_head else (HUBERT, part)
    (finding,) = findings(base, finetuned, keep_head=keep_head)
    assert (finding.level, finding.allowed_by) == (Level.REFUSAL, ALLOW_PARTIAL)
    assert told in finding.text
    assert f"would stay the {'fine-tune' if keep_head else 'base'}'s" in finding.text


def test_what_the_output_has_no_place_for_is_refused_where_it_belongs_to_a_stack() -> None:
    adapters = {f"encoder.layers.{i}.adapter.weight": HUBERT["encoder.layer_norm.weight"] for i in range(2)}
    (told,) = refusals(HUBERT, moved(HUBERT) | adapters)
    assert "2 tensors such as 'encoder.layers.0.adapter.weight'" in told
    assert "would be lost" in told


def test_a_stack_that_the_fine_tune_lacks_as_a_whole_is_noted() -> None:
    (finding,) = findings(WHISPER, without(moved(WHISPER), "decoder"))
    assert (finding.level, finding.text) == (Level.NOTE, "tuned has no decoder: it stays the base's")


def test_with_keep_head_what_only_the_base_has_is_no_matter() -> None:
    assert findings(WHISPER, without(moved(WHISPER), "decoder"), keep_head=True) == ()


def test_what_serves_training_only_may_be_missing() -> None:
    assert findings(HUBERT, without(moved(HUBERT), "masked_spec_embed")) == ()


@pytest.mark.parametrize(("ours", "theirs"), [(4, 2), (2, 4)])
def test_both_depths_are_named_and_the_layers_that_have_no_partner(ours: int, theirs: int) -> None:
    (finding,) = findings(deeper(ours), moved(deeper(theirs)))
    assert (finding.level, finding.allowed_by) == (Level.REFUSAL, ALLOW_PARTIAL)
    assert f"base has {ours} layers in the encoder, tuned has {theirs}" in finding.text
    assert f"layers 2-3 would be {'the base' if ours > theirs else 'lost'}" in finding.text
    assert ("--keep-head" in finding.hint) == (ours > theirs)


def test_with_keep_head_a_deeper_base_is_a_warning_and_a_deeper_fine_tune_refused() -> None:
    (warned,) = findings(deeper(4), moved(deeper(2)), keep_head=True)
    assert (warned.level, "base has 4 layers" in warned.text) == (Level.WARNING, True)
    (told,) = refusals(deeper(2), moved(deeper(4)), keep_head=True)
    assert "layers 2-3 would be the fine-tune's" in told


def test_a_fine_tune_in_integers_covers_nothing() -> None:
    halved = {n: t.half() if "q_proj.weight" not in n else t.int() for n, t in moved(HUBERT).items()}
    (told,) = refusals(HUBERT, halved)
    assert "in part only: 2 tensors such as 'encoder.layers.0.attention.q_proj.weight'" in told


def test_models_without_a_common_block_are_unrelated() -> None:
    (finding,) = findings(HUBERT, without(moved(HUBERT), "encoder.layers"))
    assert finding.allowed_by == ALLOW_UNRELATED
    assert re.search(r"tuned has only \d+% of the parameters of base", finding.text)
