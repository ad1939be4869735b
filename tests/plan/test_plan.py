"""What becomes of each tensor, and why: decided on names, shapes and types alone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import checkpoint_of

from speechft_merge.checkpoints import DType
from speechft_merge.errors import MismatchError, UsageError
from speechft_merge.output.shards import lay_out_safetensors
from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED, require_sound
from speechft_merge.plan.operations import Copy, Interpolate
from speechft_merge.plan.plan import Action, Plan, PlannedTensor, make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from speechft_merge.checkpoints import Checkpoint

Tensors = dict[str, torch.Tensor]

INTERPOLATED, COPIED, TAKEN, LEFT_OUT = Action.INTERPOLATED, Action.COPIED, Action.TAKEN, Action.LEFT_OUT


def encoder(layers: int = 2, prefix: str = "") -> Tensors:
    """The names of a small HuBERT."""
    names: Tensors = {
        "masked_spec_embed": torch.zeros(4),
        "feature_extractor.conv_layers.0.conv.weight": torch.zeros(4, 1, 3),
        "feature_projection.projection.weight": torch.zeros(4, 4),
        "encoder.pos_conv_embed.conv.weight_g": torch.zeros(1, 1, 3),
        "encoder.pos_conv_embed.conv.weight_v": torch.zeros(4, 2, 3),
        "encoder.layer_norm.weight": torch.zeros(4),
    }
    for layer in range(layers):
        names[f"encoder.layers.{layer}.attention.k_proj.weight"] = torch.zeros(4, 4)
        names[f"encoder.layers.{layer}.final_layer_norm.bias"] = torch.zeros(4)
    return {prefix + name: tensor for name, tensor in names.items()}


def ctc(prefix: str = "hubert.", vocabulary: int = 7) -> Tensors:
    head = {"lm_head.weight": torch.zeros(vocabulary, 4), "lm_head.bias": torch.zeros(vocabulary)}
    return encoder(prefix=prefix) | head


def plan(base: Tensors, *finetuned: Tensors, rules: tuple[str, ...] = (), **recipe: Any) -> Plan:
    opened = [checkpoint_of(tensors, f"finetuned{i}") for i, tensors in enumerate(finetuned)]
    made = make_plan(
        checkpoint_of(base, "base"), opened, Recipe(layer_alpha=tuple(parse_rule(text) for text in rules), **recipe)
    )
    require_sound(made.findings, [ALLOW_PARTIAL, ALLOW_UNRELATED])
    return made


def actions_of(tensor: PlannedTensor) -> tuple[Action, str]:
    return tensor.action, tensor.reason


def by_name(made: Plan) -> dict[str, PlannedTensor]:
    return {tensor.name: tensor for tensor in (*made.tensors, *made.left_out)}


def mix(tensor: PlannedTensor) -> Interpolate:
    assert isinstance(tensor.operation, Interpolate)
    return tensor.operation


def weights(tensor: PlannedTensor) -> tuple[float, ...]:
    return tuple(term.weight for term in mix(tensor).terms)


def actions(made: Plan) -> dict[str, tuple[Action, str]]:
    return {name: (tensor.action, tensor.reason) for name, tensor in by_name(made).items()}


# the usual cases
def test_what_both_have_is_interpolated() -> None:
    made = plan(encoder(), encoder(), alpha=0.3)
    assert set(actions(made).values()) == {(INTERPOLATED, "")}
    for tensor in made.tensors:
        assert tensor.alpha == mix(tensor).alpha == 0.3
        assert weights(tensor) == (1.0,)
        assert [span.source.name for span in tensor.inputs] == ["base", "finetuned0"]
        assert tensor.dtype is DType.F32
    assert made.coverages[0] == 1
    assert made.left_out == ()


def test_the_finetunes_head_is_left_out() -> None:
    made = plan(encoder(), ctc())
    assert [tensor.name for tensor in made.tensors] == list(encoder())
    left = dict.fromkeys(("lm_head.weight", "lm_head.bias"), (LEFT_OUT, "the fine-tune's head"))
    assert actions(made) == dict.fromkeys(encoder(), (INTERPOLATED, "")) | left


def test_the_bases_head_is_copied() -> None:
    made = plan(ctc(), encoder())
    assert [tensor.name for tensor in made.tensors] == list(ctc())
    for name in ("lm_head.weight", "lm_head.bias"):
        assert actions(made)[name] == (COPIED, "the base's head")
        assert by_name(made)[name].location.part == "head"


def test_what_the_finetune_lacks_is_the_bases() -> None:
    finetuned = ctc()
    del finetuned["hubert.masked_spec_embed"]
    made = plan(encoder(), finetuned)
    assert actions(made)["masked_spec_embed"] == (COPIED, "not in the fine-tune")
    assert [span.source.name for span in by_name(made)["masked_spec_embed"].inputs] == ["base"]


def test_what_the_base_lacks_is_left_out() -> None:
    made = plan(encoder(), ctc() | {"hubert.adapter.layers.0.weight": torch.zeros(2)})
    assert actions(made)["hubert.adapter.layers.0.weight"] == (LEFT_OUT, "not in the base")


def test_output_names_are_the_bases_to_the_letter() -> None:
    renamed = {name.replace("weight_g", "parametrizations.weight.original0"): t for name, t in ctc("module.").items()}
    made = plan(encoder(), renamed)
    assert [tensor.name for tensor in made.tensors] == list(encoder())
    assert made.counts == {"interpolated": len(encoder()), "copied": 0, "taken": 0, "left out": 2}


# types
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_what_is_no_number_to_interpolate_is_copied_from_the_base(dtype: torch.dtype) -> None:
    odd = {"encoder.odd": torch.zeros(3).to(dtype)}
    made = plan(encoder() | odd, encoder() | odd)
    tensor = by_name(made)["encoder.odd"]
    assert (tensor.action, tensor.reason) == (COPIED, f"{str(dtype).removeprefix('torch.')} is not interpolated")
    assert [span.source.name for span in tensor.inputs] == ["base"]


def test_a_float_that_is_an_integer_in_the_finetune_is_copied() -> None:
    made = plan(encoder() | {"encoder.odd": torch.zeros(3)}, encoder() | {"encoder.odd": torch.zeros(3).long()})
    assert actions(made)["encoder.odd"] == (COPIED, "int64 in the fine-tune is not interpolated")


@pytest.mark.parametrize(
    ("wanted", "dtype"), [("float32", DType.F32), ("float16", DType.F16), ("bfloat16", DType.BF16)]
)
def test_an_output_type_is_for_floats_only(wanted: str, dtype: DType) -> None:
    both = ctc() | {"hubert.steps": torch.zeros(3).long(), "hubert.wide": torch.zeros(3).double()}
    made = plan(both, both, dtype=wanted)
    assert {t.name: t.dtype for t in made.tensors} == dict.fromkeys(both, dtype) | {"hubert.steps": DType.I64}


def test_the_output_type_is_the_bases_by_default() -> None:
    base = {name: tensor.bfloat16() for name, tensor in encoder().items()}
    assert {tensor.dtype for tensor in plan(base, encoder()).tensors} == {DType.BF16}


def test_larger_elements_come_first_and_the_rest_stays_in_order() -> None:
    dtypes = [torch.uint8, torch.float16, torch.float32, torch.int64, torch.float64, torch.bool]
    odd = {f"encoder.x{i}": torch.zeros(3).to(dtypes[i % len(dtypes)]) for i in range(18)}
    both = {name: odd.get(name, tensor) for name, tensor in (odd | encoder()).items()}
    made = plan(both, both)
    expected = sorted(both, key=lambda name: -both[name].itemsize)
    assert [tensor.name for tensor in made.tensors] == expected
    for segment in lay_out_safetensors(made.tensors).files[0].segments:
        assert segment.offset % segment.dtype.itemsize == 0


# heads
def test_heads_on_both_sides_stay_the_bases() -> None:
    made = plan(ctc(), ctc())
    heads = {tensor.name: tensor for tensor in made.tensors if tensor.location.part == "head"}
    assert heads.keys() == {"lm_head.weight", "lm_head.bias"}
    assert {(tensor.action, tensor.reason) for tensor in heads.values()} == {(COPIED, "the base's head")}
    assert made.left_out == ()


@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize(("rule", "named"), [("head=0.5", {"weight", "bias"}), ("lm_head.bias=0.5", {"bias"})])
def test_heads_that_a_rule_names_are_interpolated(rule: str, named: set[str], keep_head: bool) -> None:
    made = plan(ctc(), ctc(), rules=(rule,), keep_head=keep_head)
    mixed = {t.name for t in made.tensors if t.action is INTERPOLATED and t.location.part == "head"}
    assert mixed == {f"lm_head.{word}" for word in named}
    assert {t.alpha for t in made.tensors if t.name in mixed} == {0.5}


def test_a_head_of_another_shape_is_two_heads() -> None:
    made = plan(ctc(), ctc(vocabulary=9))
    assert actions(made)["lm_head.weight"][0] is LEFT_OUT
    assert [(t.action, t.shape) for t in made.tensors if t.name == "lm_head.weight"] == [(COPIED, (7, 4))]


def test_keep_head_writes_the_finetunes_class() -> None:
    base = encoder() | {"encoder.only_here": torch.zeros(2)}
    made = plan(base, ctc() | {"hubert.adapter.weight": torch.zeros(2)}, keep_head=True)
    assert {t.name: t.action for t in made.tensors} == dict.fromkeys(encoder(prefix="hubert."), INTERPOLATED) | {
        "lm_head.weight": TAKEN,
        "lm_head.bias": TAKEN,
        "hubert.adapter.weight": TAKEN,
    }
    assert actions(made)["lm_head.weight"] == (TAKEN, "the fine-tune's head")
    assert actions(made)["hubert.adapter.weight"] == (TAKEN, "not in the base")
    assert actions(made)["encoder.only_here"] == (LEFT_OUT, "not in the fine-tune")
    taken = by_name(made)["lm_head.weight"]
    assert [span.source.name for span in taken.inputs] == ["finetuned0"]


def test_keep_head_prefers_the_finetunes_head_to_the_bases() -> None:
    made = plan(ctc(vocabulary=9), ctc(), keep_head=True)
    heads = [tensor for tensor in made.tensors if tensor.location.part == "head"]
    assert {(tensor.action, tensor.shape[0]) for tensor in heads} == {(TAKEN, 7)}
    left = [tensor for tensor in made.left_out if tensor.location.part == "head"]
    assert {(tensor.reason, tensor.shape[0]) for tensor in left} == {("the base's head", 9)}
    assert {t.action for t in plan(ctc(), ctc(), keep_head=True).tensors if t.location.part == "head"} == {TAKEN}


# ties
def whisper(tied: bool) -> Tensors:
    table = torch.zeros(6, 4)
    names = {
        f"model.{stack}.layers.{i}.fc1.weight": torch.zeros(4, 4) for stack in ("encoder", "decoder") for i in (0, 1)
    }
    names["model.decoder.embed_tokens.weight"] = table
    return names | ({"proj_out.weight": table} if tied else {})


def bytes_of(tensor: PlannedTensor) -> tuple[Any, ...]:
    """What its bytes depend on; equal for equal operations on the same bytes."""
    places = [span.storage_key for span in tensor.inputs]
    if isinstance(tensor.operation, Interpolate):
        return places, weights(tensor), tensor.operation.alpha, tensor.dtype
    return places, tensor.dtype


@pytest.mark.parametrize(("base", "finetuned"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize("rules", [(), ("decoder=0",), ("decoder=1",)])
def test_tied_tensors_stay_equal(base: bool, finetuned: bool, keep_head: bool, rules: tuple[str, ...]) -> None:
    made = by_name(plan(whisper(base), whisper(finetuned), rules=rules, keep_head=keep_head))
    tables = [made[name] for name in ("model.decoder.embed_tokens.weight", "proj_out.weight") if name in made]
    kept = [bytes_of(table) for table in tables if table.action is not LEFT_OUT]
    assert len(kept) == 1 + (finetuned if keep_head else base)
    assert all(one == kept[0] for one in kept)


@pytest.mark.parametrize("bare_first", [True, False])
def test_what_one_finetune_has_as_a_part_of_the_model_is_no_head_because_another_lacks_it(bare_first: bool) -> None:
    """Beside a bare encoder, the rest of the base looks like heads."""
    base = whisper(tied=False)
    stem = "model.encoder."
    bare = {name.removeprefix(stem): tensor for name, tensor in base.items() if name.startswith(stem)}
    made = by_name(plan(base, *((bare, base) if bare_first else (base, bare))))
    decoder = made["model.decoder.layers.0.fc1.weight"]
    assert (decoder.action, decoder.location.stack) == (INTERPOLATED, "decoder")


@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize("rules", [(), ("decoder=0.5",), ("decoder=1",)])
def test_a_tied_head_that_stands_first_in_the_file_becomes_what_the_encoders_tensor_becomes(
    keep_head: bool, rules: tuple[str, ...]
) -> None:
    behind = whisper(tied=True)
    first = {"proj_out.weight": behind["proj_out.weight"]} | behind
    assert next(iter(first)) == "proj_out.weight"
    made = by_name(plan(first, first, rules=rules, keep_head=keep_head))
    head, table = made["proj_out.weight"], made["model.decoder.embed_tokens.weight"]
    assert (table.action, table.reason) == (INTERPOLATED, "")
    assert (head.action, head.reason) == (INTERPOLATED, "tied to model.decoder.embed_tokens.weight")
    assert bytes_of(head) == bytes_of(table)
    assert {span.source.name for span in table.inputs} == (
        {"finetuned0"} if "decoder=1" in rules else {"base", "finetuned0"}
    )


def test_an_equal_shape_is_no_tie() -> None:
    base = whisper(tied=False) | {"proj_out.weight": torch.zeros(6, 4)}
    assert actions(plan(base, whisper(tied=True)))["proj_out.weight"] == (COPIED, "the base's head")


def test_tensors_without_elements_are_not_tied() -> None:
    both = encoder() | {"encoder.a": torch.zeros(0), "lm_head.b": torch.zeros(0)}
    assert actions(plan(both, both))["lm_head.b"] == (COPIED, "the base's head")


# alphas
def test_an_alpha_of_zero_means_that_the_finetune_is_not_read() -> None:
    made = plan(encoder(), encoder(), rules=("cnn=0", "1=0"))
    for name, tensor in by_name(made).items():
        still = name.startswith(("feature_extractor", "encoder.layers.1"))
        assert (tensor.action, tensor.reason) == ((COPIED, "alpha is 0") if still else (INTERPOLATED, ""))
        assert [span.source.name for span in tensor.inputs] == (["base"] if still else ["base", "finetuned0"])


def test_an_alpha_of_one_means_that_the_base_is_not_read() -> None:
    made = plan(encoder(), encoder(), alpha=1.0)
    assert {tensor.action for tensor in made.tensors} == {INTERPOLATED}
    assert {(type(t.at(0).operation), *(span.source.name for span in t.inputs)) for t in made.tensors} == {
        (Copy, "finetuned0")
    }


def test_an_alpha_of_zero_everywhere_gives_the_base() -> None:
    made = plan(encoder(), ctc(), alpha=0.0)
    assert {(type(t.operation), t.inputs[0].source.name) for t in made.tensors} == {(Copy, "base")}


def test_bytes_to_read_are_those_of_the_inputs() -> None:
    made = plan(encoder(), encoder(), rules=("layers=0",))
    size = {name: tensor.nbytes for name, tensor in encoder().items()}
    assert sum(tensor.nbytes for tensor in made.tensors) == sum(size.values())
    assert lay_out_safetensors(made.tensors).read_bytes == sum(
        n * (1 if ".layers." in name else 2) for name, n in size.items()
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("keep_head", [True, False])
def test_what_is_interpolated_with_what_is_known_whatever_the_alpha(alpha: float, keep_head: bool) -> None:
    made = plan(encoder(), ctc(), rules=("1=0",), alpha=alpha, keep_head=keep_head)
    mixed = [t.operation for t in made.tensors if isinstance(t.operation, Interpolate)]
    assert len(mixed) == made.counts["interpolated"] > 0
    assert {tuple(span.source.name for span in mix.inputs) for mix in mixed} == {("base", "finetuned0")}


# several fine-tunes
def test_several_finetunes_share_by_their_weights() -> None:
    made = plan(encoder(), ctc(), encoder(), weight=(1.0, 3.0))
    for tensor in made.tensors:
        assert weights(tensor) == (0.25, 0.75)
        assert [term.model for term in mix(tensor).terms] == [0, 1]
        assert [span.source.name for span in tensor.inputs] == ["base", "finetuned0", "finetuned1"]


def test_a_finetune_that_lacks_a_tensor_leaves_the_others_their_weights() -> None:
    lacking = encoder()
    del lacking["masked_spec_embed"]
    made = plan(encoder(), lacking, ctc())
    tensor = by_name(made)["masked_spec_embed"]
    assert (tensor.action, tensor.reason) == (INTERPOLATED, "missing in 1 of 2 fine-tunes")
    assert (weights(tensor), [span.source.name for span in tensor.inputs]) == ((0.5,), ["base", "finetuned1"])
    assert [term.model for term in mix(tensor).terms] == [1]
    assert weights(by_name(made)["encoder.layer_norm.weight"]) == (0.5, 0.5)


def test_alpha_one_of_a_tensor_that_one_finetune_lacks_is_no_copy() -> None:
    lacking = encoder()
    del lacking["masked_spec_embed"]
    made = plan(encoder(), lacking, encoder(), alpha=1.0)
    assert weights(by_name(made)["masked_spec_embed"]) == (0.5,)


def test_keep_head_takes_that_of_the_first_finetune() -> None:
    made = plan(encoder(), ctc(), ctc(vocabulary=9), keep_head=True)
    assert {t.shape[0] for t in made.tensors if t.action is TAKEN} == {7}
    assert {len(weights(t)) for t in made.tensors if t.action is INTERPOLATED} == {2}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_weights_must_be_as_many_as_finetunes(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=rf"{len(weights)} weights? for 2 fine-tuned models"):
        plan(encoder(), encoder(), encoder(), weight=weights)


# coverage
def test_coverage_is_the_share_of_the_bases_parameters_that_take_part() -> None:
    sizes = [sum(t.numel() for name, t in encoder(n).items() if name != "masked_spec_embed") for n in (2, 4)]
    assert plan(encoder(4), ctc()).coverages[0] == pytest.approx(sizes[0] / sizes[1])
    assert plan(encoder(2), encoder(4)).coverages[0] == 1
    assert plan(ctc(), encoder()).coverages[0] == 1


def test_each_finetune_has_its_coverage() -> None:
    assert plan(encoder(4), encoder(4), encoder(2)).coverages == (1, plan(encoder(4), encoder(2)).coverages[0])


# what is refused
@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1), (4,), (8, 4), (16,), (4, 4, 1)], ids=str)
def test_another_shape_is_refused_with_the_evidence_even_if_it_would_broadcast(shape: tuple[int, ...]) -> None:
    name = "encoder.layers.1.attention.k_proj.weight"
    with pytest.raises(MismatchError) as refused:
        plan(encoder(), ctc() | {f"hubert.{name}": torch.zeros(shape)})
    for word in (name, "[4, 4]", str(list(shape)), "finetuned0", "base", "1 tensor has another shape"):
        assert word in str(refused.value)


def test_another_shape_in_the_second_finetune_is_refused_too() -> None:
    with pytest.raises(MismatchError, match="finetuned1"):
        plan(encoder(), encoder(), encoder() | {"encoder.layer_norm.weight": torch.zeros(1)})


def test_models_without_a_common_tensor_are_refused_with_names_of_both() -> None:
    with pytest.raises(MismatchError, match=r"no tensor in common.*masked_spec_embed.*stem\.kernel"):
        plan(encoder(), {"stem.kernel": torch.zeros(3)})


def test_a_merge_that_would_interpolate_nothing_is_refused_with_the_reasons() -> None:
    both = {f"encoder.layers.{i}.steps": torch.zeros(3).long() for i in range(4)}
    with pytest.raises(MismatchError, match="nothing would be interpolated: 4 tensors int64 is not interpolated"):
        plan(both, both)


def with_unreadable(tensors: Tensors, name: str) -> Checkpoint:
    checkpoint = checkpoint_of(tensors, name)
    checkpoint.unreadable["encoder.q"] = "it is quantized"
    return checkpoint


def test_a_base_with_a_tensor_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"base: tensor 'encoder.q' cannot be read: it is quantized"):
        require_sound(make_plan(with_unreadable(encoder(), "base"), [checkpoint_of(encoder())], Recipe()).findings, ())


def test_a_finetune_with_a_tensor_that_cannot_be_read_is_refused_only_if_all_are_needed() -> None:
    finetuned = with_unreadable(ctc(), "tuned")
    made = make_plan(checkpoint_of(encoder()), [finetuned], Recipe())
    assert actions(made)["encoder.q"] == (LEFT_OUT, "it is quantized")
    with pytest.raises(MismatchError, match=r"tuned: tensor 'encoder.q' cannot be read"):
        require_sound(make_plan(checkpoint_of(encoder()), [finetuned], Recipe(keep_head=True)).findings, ())


# all are accounted for
@given(
    lost=st.sets(st.integers(0, 9), max_size=4),
    lost_in_base=st.sets(st.integers(0, 9), max_size=4),
    heads=st.tuples(st.booleans(), st.booleans()),
    keep_head=st.booleans(),
    rules=st.sets(st.sampled_from(["encoder=0.5", "layers=0", "layers=0.1:0.9", "encoder.layers.*.**=1"]), max_size=2),
)
@settings(max_examples=80)
def test_every_tensor_of_either_side_is_accounted_for_once(
    lost: set[int], lost_in_base: set[int], heads: tuple[bool, bool], keep_head: bool, rules: set[str]
) -> None:
    base = {name: t for i, (name, t) in enumerate(encoder().items()) if i not in lost_in_base}
    finetuned = {f"hubert.{name}": t for i, (name, t) in enumerate(encoder().items()) if i not in lost}
    head = {"lm_head.weight": torch.zeros(7, 4)}
    base |= head if heads[0] else {}
    finetuned |= head if heads[1] else {}
    try:
        made = plan(base, finetuned, rules=tuple(rules), keep_head=keep_head)
    except (MismatchError, UsageError):
        return
    owner, other = (finetuned, base) if keep_head else (base, finetuned)
    assert sorted(tensor.name for tensor in made.tensors) == sorted(owner)
    for tensor in made.tensors:
        assert tensor.shape == tuple(owner[tensor.name].shape)
        assert (tensor.reason == "") is (tensor.action is INTERPOLATED)
    left = {tensor.name for tensor in made.left_out}
    assert left <= set(other)
    assert all(tensor.reason for tensor in made.left_out)
    assert sum(made.counts.values()) == len(made.tensors) + len(made.left_out)


@pytest.mark.parametrize("first", [True, False])
def test_a_finetune_that_has_numbers_of_another_kind_takes_no_part_in_a_tensor(first: bool) -> None:
    name = "encoder.layers.0.final_layer_norm.bias"
    odd = encoder() | {name: torch.zeros(4, dtype=torch.int32)}
    made = by_name(plan(encoder(), *((odd, encoder()) if first else (encoder(), odd))))
    assert actions_of(made[name]) == (INTERPOLATED, "missing in 1 of 2 fine-tunes")
    assert [span.source.name for span in made[name].inputs] == ["base", f"finetuned{int(first)}"]


@pytest.mark.parametrize("keep_head", [True, False])
def test_what_only_a_later_finetune_has_is_told_as_left_out(keep_head: bool) -> None:
    more = ctc() | {"hubert.adapter.weight": torch.zeros(2)}
    made = by_name(plan(encoder(), ctc(), more, keep_head=keep_head))
    assert actions_of(made["hubert.adapter.weight"]) == (LEFT_OUT, "not in the base")


@pytest.mark.parametrize(
    ("halves", "base", "finetuned", "converts"),
    [
        (0, torch.float16, torch.float16, False),
        (1, torch.float16, torch.float16, False),
        (2, torch.float16, torch.float16, True),
        (3, torch.bfloat16, torch.bfloat16, True),
        (2, torch.float16, torch.float32, True),
        (2, torch.float32, torch.bfloat16, True),
        (3, torch.float64, torch.float64, False),
        (3, torch.float64, torch.float32, False),
    ],
)
def test_a_merge_converts_if_most_of_its_bytes_are_of_half_types(
    halves: int, base: torch.dtype, finetuned: torch.dtype, converts: bool
) -> None:
    """Of three tensors so many have these types, and as many bytes as the rest."""

    def model(dtype: torch.dtype) -> Tensors:
        width = torch.tensor([], dtype=base).element_size()
        halved = {f"encoder.layers.{i}.half": torch.zeros(480 // width).to(dtype) for i in range(halves)}
        return halved | {f"encoder.layers.{i}.single": torch.zeros(120) for i in range(halves, 3)}

    assert plan(model(base), model(finetuned)).converts is converts
    assert not plan(model(base), model(finetuned), alpha=0.0).converts
