"""How much of each stack is mixed: what one side lacks is refused in part, noted as a whole, and always said."""

from __future__ import annotations

import re

import pytest
import torch
from models import build, checkpoint_of
from plan_pairs import Tensors, findings, moved, planned, prefixed, refusals, without

from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED, Level, texts
from speechft_merge.plan.plan import make_plan
from speechft_merge.recipe import Recipe
from speechft_merge.recipe.rules import AlphaRule

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


def test_what_serves_training_only_or_is_computed_anew_may_be_missing() -> None:
    assert findings(HUBERT, without(moved(HUBERT), "masked_spec_embed")) == ()
    computed = {"encoder.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}
    assert findings(HUBERT | computed, moved(HUBERT)) == findings(HUBERT, moved(HUBERT) | computed) == ()


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
    for pair in ((HUBERT, halved), (halved, HUBERT)):
        for keep_head in (False, True):
            (told,) = refusals(*pair, keep_head=keep_head)
            assert "quantised weights: 2 tensors such as 'encoder.layers.0.attention.q_proj.weight'" in told


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int16])
@pytest.mark.parametrize("keep_head", [False, True])
def test_what_is_in_a_type_that_is_not_mixed_covers_nothing(dtype: torch.dtype, keep_head: bool) -> None:
    name = "encoder.layers.0.attention.q_proj.bias"
    odd = {name: HUBERT[name].to(dtype)}
    (told,) = refusals(HUBERT, moved(HUBERT) | odd, keep_head=keep_head)
    assert f"mixed in part only, {str(dtype)[6:]} being no type for it: 1 tensor such as '{name}'" in told


def test_a_module_beside_the_encoder_that_both_have_is_mixed_and_a_layer_is_a_head() -> None:
    vocoder = {f"vocoder.convs.{i}.weight": torch.randn(8, 8, 3) for i in range(2)}
    model = prefixed("model.", HUBERT) | vocoder
    assert findings(model, moved(model)) == ()
    assert [t.alpha for t in planned(model, moved(model)).tensors if "vocoder" in t.name] == [0.25, 0.25]
    layer = prefixed("model.", HUBERT) | {"fc.weight": torch.randn(4, 32), "fc.bias": torch.randn(4)}
    (finding,) = findings(layer, moved(layer))
    assert (finding.level, finding.text.rpartition(": ")[2]) == (Level.NOTE, "fc; they stay the base's")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_module_with_blocks_is_no_head_whatever_its_name(prefix: str) -> None:
    blocks = {f"projector.layer.{i}.fc{k}.weight": torch.randn(8, 8) for i in range(2) for k in range(2)}
    model = prefixed(prefix, HUBERT) | blocks
    assert findings(model, moved(model)) == ()
    assert {t.alpha for t in planned(model, moved(model)).tensors} == {0.25}


def test_models_without_a_common_block_are_unrelated() -> None:
    (finding,) = findings(HUBERT, without(moved(HUBERT), "encoder.layers"))
    assert finding.allowed_by == ALLOW_UNRELATED
    assert re.search(r"tuned has only \d+% of the parameters of base", finding.text)


@pytest.mark.parametrize("keep_head", [False, True])
def test_what_one_of_two_fine_tunes_lacks_is_said_to_be_mixed_without_it(keep_head: bool) -> None:
    tuned = [checkpoint_of(moved(WHISPER), "whole"), checkpoint_of(without(moved(WHISPER), "decoder"), "part")]
    plan = make_plan(checkpoint_of(WHISPER, "base"), tuned, Recipe(keep_head=keep_head))
    assert [finding.text for finding in plan.findings] == ["part has no decoder and takes no part there"]
    shorter = {name: tensor for name, tensor in moved(HUBERT).items() if ".layers.1." not in name}
    tuned = [checkpoint_of(moved(HUBERT), "whole"), checkpoint_of(shorter, "part")]
    plan = make_plan(checkpoint_of(HUBERT, "base"), tuned, Recipe(keep_head=keep_head))
    (told,) = texts(plan.findings, Level.REFUSAL)
    assert "layers 1 would be mixed without it" in told


@pytest.mark.parametrize("keep_head", [False, True])
def test_names_that_differ_in_a_word_for_a_model_meet(keep_head: bool) -> None:
    bridge, text = {"bridge_projector.weight": torch.randn(8, 32)}, {"embed.weight": torch.randn(50, 32)}
    text |= {f"layers.{i}.fc{k}.weight": torch.randn(32, 32) for i in range(2) for k in range(2)}
    on_disk = HUBERT | bridge | prefixed("language_model.model.", text)
    in_memory = prefixed("model.", moved(HUBERT | bridge) | prefixed("language_model.", moved(text)))
    for pair in ((on_disk, in_memory), (in_memory, on_disk)):
        recipe = {"keep_head": keep_head, "layer_alpha": (AlphaRule("language_model", 0.25, 0.25),)}
        assert findings(*pair, **recipe) == ()
        assert {tensor.alpha for tensor in planned(*pair, **recipe).tensors} == {0.25}


@pytest.mark.parametrize("keep_head", [False, True])
def test_names_of_another_version_are_told_by_the_shapes_and_refused(keep_head: bool) -> None:
    renamed = {name.replace("feed_forward.", "mlp.").replace("_proj.", "."): t for name, t in moved(HUBERT).items()}
    (finding,) = findings(HUBERT, renamed, keep_head=keep_head)
    assert (finding.level, finding.allowed_by) == (Level.REFUSAL, ALLOW_PARTIAL)
    assert "which has as many of their shapes under other names" in finding.text


@pytest.mark.parametrize("keep_head", [False, True])
def test_an_output_projection_that_is_the_only_embedding_of_words_is_no_head(keep_head: bool) -> None:
    model = build("Whisper", "ForConditionalGeneration").state_dict()
    for kept in (model, without(model, "embed_tokens")):
        assert findings(kept, moved(kept), keep_head=keep_head) == ()
    assert {tensor.alpha for tensor in planned(kept, moved(kept), keep_head=keep_head).tensors} == {0.25}


def test_a_second_name_of_a_tensor_that_is_paired_is_no_loss() -> None:
    tuned = moved(WHISPER)
    tuned["model.encoder.embed.weight"] = tuned["model.decoder.embed_tokens.weight"]
    for keep_head in (False, True):
        assert findings(WHISPER, tuned, keep_head=keep_head) == ()
    assert {tensor.alpha for tensor in planned(WHISPER, tuned, keep_head=True).tensors} == {0.25}


@pytest.mark.parametrize("keep_head", [False, True])
def test_a_prenet_that_the_other_class_has_not_is_a_unit_of_its_own(keep_head: bool) -> None:
    prenets = [
        {"encoder.prenet.proj.weight": torch.randn(32, 8)},
        {"encoder.prenet.embed.weight": torch.randn(40, 32)},
    ]
    base, tuned = (
        prefixed("speecht5.", model | prenet) for model, prenet in zip((HUBERT, moved(HUBERT)), prenets, strict=True)
    )
    (finding,) = findings(base, tuned, keep_head=keep_head)
    assert finding.level is Level.NOTE
    assert "has no encoder.prenet" in finding.text
