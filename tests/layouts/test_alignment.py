"""Which tensor is which, whatever class the model was saved as and whatever was put before its names."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CLASSES, backbone, build, shapes, shapes_of

from speechft_merge.layouts import alignment
from speechft_merge.layouts.naming import TensorName, read_naming
from speechft_merge.layouts.prefixes import MODEL_PREFIXES, encoder_prefix
from speechft_merge.layouts.weight_norm import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from speechft_merge.layouts.alignment import Alignment, Shapes

PAIRS = [(family, *both) for family, kinds in CLASSES.items() for both in itertools.product(kinds, repeat=2)]
FAMILIES = list(CLASSES)
TASKS = [(family, kind) for family, kinds in CLASSES.items() for kind in kinds[1:]]

KNOWN = ("module.", "model.", "_orig_mod.module.")
UNKNOWN = ("foo.", "foo.bar.")


def align(base: Mapping[str, tuple[int, ...]], finetuned: Mapping[str, tuple[int, ...]]) -> Alignment:
    return alignment.align(read_naming(base), read_naming(finetuned))


def within(names: Mapping[str, TensorName]) -> dict[str, str]:
    """Own name -> canonical name, heads aside."""
    return {own: name.canonical for own, name in names.items() if not name.is_head}


def with_prefix(prefix: str, of: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in of.items()}


def legacy(name: str) -> str:
    """Weight norm as torch before 2.0 names it."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def renamed(rename: Callable[[str], str], of: Shapes) -> Shapes:
    return {rename(name): shape for name, shape in of.items()}


def expected(family: str, base: str, finetuned: str) -> dict[str, str]:
    """Partners by transformers' own account of its classes."""
    ours, theirs = backbone(family, base), backbone(family, finetuned)
    return {ours[name]: theirs[name] for name in ours if name in theirs}


def assert_whole(found: Alignment, family: str, base: str, finetuned: str) -> None:
    """Every partner is found, and nothing else is taken for a part of the backbone."""
    assert found.pairs == expected(family, base, finetuned)
    assert found.mismatched == {}
    assert set(within(found.base_names)) == set(backbone(family, base).values())
    assert set(within(found.finetuned_names)) == set(backbone(family, finetuned).values())


# classes
@pytest.mark.parametrize(("family", "base", "finetuned"), PAIRS)
def test_any_two_classes_of_a_family_match(family: str, base: str, finetuned: str) -> None:
    found = align(dict(shapes(family, base)), dict(shapes(family, finetuned)))
    assert_whole(found, family, base, finetuned)
    assert found.pairs


@pytest.mark.parametrize(("family", "base", "finetuned"), PAIRS)
def test_names_within_the_model_are_those_of_the_bare_class(family: str, base: str, finetuned: str) -> None:
    found = align(dict(shapes(family, base)), dict(shapes(family, finetuned)))
    bare = {name: canonical(relative) for relative, name in backbone(family, base).items()}
    assert within(found.base_names) == bare


@pytest.mark.parametrize(("family", "kind"), TASKS)
def test_heads_of_one_class_match_each_other(family: str, kind: str) -> None:
    both = dict(shapes(family, kind))
    heads = set(both) - set(backbone(family, kind).values())
    assert align(both, both).heads == {name: name for name in heads}


@pytest.mark.parametrize(("family", "kind"), TASKS)
def test_heads_of_other_shapes_are_no_mismatch(family: str, kind: str) -> None:
    base = dict(shapes(family, kind))
    heads = set(base) - set(backbone(family, kind).values())
    found = align(base, base | {name: (*base[name], 7) for name in heads})
    assert_whole(found, family, kind, kind)
    assert found.heads == {}


@pytest.mark.parametrize("family", ["Wav2Vec2", "WavLM"])
def test_the_head_of_xvector_that_is_called_feature_extractor_is_not_taken_for_the_convolutions(family: str) -> None:
    for base, finetuned in itertools.product(CLASSES[family], repeat=2):
        found = align(dict(shapes(family, base)), dict(shapes(family, finetuned)))
        named = {"feature_extractor.weight", "feature_extractor.bias"}
        assert not named & {*found.pairs, *found.pairs.values(), *within(found.base_names)}
        assert not named & {*within(found.finetuned_names)}


def test_a_finetune_of_whispers_encoder_alone_matches_the_encoder() -> None:
    base, finetuned = dict(shapes("Whisper", "ForConditionalGeneration")), dict(shapes("Whisper", "Model"))
    encoder = {name: shape for name, shape in finetuned.items() if name.startswith("encoder.")}
    for prefix in ("", "model.", "foo.bar."):
        found = align(base, with_prefix(prefix, encoder))
        assert found.pairs == {f"model.{name}": prefix + name for name in encoder}
    bare = {name.removeprefix("encoder."): shape for name, shape in encoder.items()}
    assert align(base, bare).pairs == {f"model.encoder.{name}": name for name in bare}


@pytest.mark.parametrize("head", ["decoder", "head"])
def test_an_encoder_of_a_fifth_of_the_file_is_found_beside_what_is_larger(head: str) -> None:
    """As Whisper tiny's beside its decoder: 22 % of the parameters, and here of the tensors too."""
    whole = shapes_of(build("Whisper", decoder_layers=5, vocab_size=400).state_dict())
    encoder = {name.removeprefix("encoder."): shape for name, shape in whole.items() if name.startswith("encoder.")}
    finetuned = {name.replace("decoder.", f"{head}."): shape for name, shape in whole.items()}
    assert 0.2 < len(encoder) / len(whole) < 0.24
    assert 0.2 < sum(map(math.prod, encoder.values())) / sum(map(math.prod, whole.values())) < 0.24
    for prefix in ("", "net."):
        found = align(encoder, with_prefix(prefix, finetuned))
        assert found.pairs == {name: f"{prefix}encoder.{name}" for name in encoder}
        assert found.finetuned_prefix == f"{prefix}encoder."


# prefixes
@pytest.mark.parametrize("prefix", [*KNOWN, *UNKNOWN])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_prefix_on_one_side_is_seen_through(family: str, prefix: str) -> None:
    for base, finetuned in itertools.product(CLASSES[family], repeat=2):
        ours, theirs = dict(shapes(family, base)), dict(shapes(family, finetuned))
        wanted = expected(family, base, finetuned)
        assert align(ours, with_prefix(prefix, theirs)).pairs == {a: prefix + b for a, b in wanted.items()}
        assert align(with_prefix(prefix, ours), theirs).pairs == {prefix + a: b for a, b in wanted.items()}


@pytest.mark.parametrize(("first", "second"), [("module.", "module."), ("model.", "_orig_mod.module.")])
@pytest.mark.parametrize("family", FAMILIES)
def test_known_prefixes_on_both_sides_are_seen_through(family: str, first: str, second: str) -> None:
    for base, finetuned in itertools.product(CLASSES[family], repeat=2):
        found = align(
            with_prefix(first, dict(shapes(family, base))), with_prefix(second, dict(shapes(family, finetuned)))
        )
        wanted = expected(family, base, finetuned)
        assert found.pairs == {first + a: second + b for a, b in wanted.items()}
        assert set(within(found.base_names).values()) == {canonical(name) for name in backbone(family, base)}


@pytest.mark.parametrize(("family", "kind"), [("Hubert", "ForCTC"), ("WavLM", "ForXVector")])
@pytest.mark.parametrize("prefix", UNKNOWN)
def test_a_prefix_nobody_knows_on_both_sides_hides_no_head(family: str, kind: str, prefix: str) -> None:
    both = with_prefix(prefix, dict(shapes(family, kind)))
    found = align(both, both)
    assert set(found.pairs) == {prefix + name for name in backbone(family, kind).values()}


@given(words=st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), max_size=3), swap=st.booleans())
@settings(max_examples=40)
def test_a_prefix_of_any_words_is_seen_through(words: list[str], swap: bool) -> None:
    prefix = "".join(word + "." for word in words)
    base, finetuned = dict(shapes("Hubert", "Model")), with_prefix(prefix, dict(shapes("Hubert", "ForCTC")))
    wanted = {a: prefix + b for a, b in expected("Hubert", "Model", "ForCTC").items()}
    if swap:
        assert align(finetuned, base).pairs == {b: a for a, b in wanted.items()}
    else:
        assert align(base, finetuned).pairs == wanted


@pytest.mark.parametrize("word", sorted(MODEL_PREFIXES))
def test_a_known_word_before_most_names_is_a_prefix(word: str) -> None:
    few = {"lm_head.weight": (2, 2), "lm_head.bias": (2,)}
    names = {f"{word}.encoder.layers.{i}.weight": (2, 2) for i in range(3)}
    assert encoder_prefix(names | few) == f"{word}."
    assert encoder_prefix({f"module.{name}": shape for name, shape in (names | few).items()}) == f"module.{word}."
    assert encoder_prefix(dict(itertools.islice(names.items(), 2)) | few) == ""


def test_no_prefix_of_nothing() -> None:
    assert encoder_prefix({}) == ""


# weight norm
@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2", "WavLM"])
def test_weight_norm_written_either_way_matches_both_ways(family: str) -> None:
    for base, finetuned in itertools.product(CLASSES[family], repeat=2):
        ours, theirs = dict(shapes(family, base)), dict(shapes(family, finetuned))
        wanted = expected(family, base, finetuned)
        assert any("original0" in name for name in wanted)
        assert align(ours, renamed(legacy, theirs)).pairs == {a: legacy(b) for a, b in wanted.items()}
        assert align(renamed(legacy, ours), theirs).pairs == {legacy(a): b for a, b in wanted.items()}


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("a.conv.parametrizations.weight.original0", "a.conv.weight_g"),
        ("a.conv.parametrizations.weight.original1", "a.conv.weight_v"),
        ("parametrizations.kernel.original1", "kernel_v"),
        ("a.conv.weight_g", "a.conv.weight_g"),
        ("a.parametrizations.weight.original2", "a.parametrizations.weight.original2"),
        ("a.parametrizations.weight.original0.b", "a.parametrizations.weight.original0.b"),
    ],
)
def test_weight_norm_has_one_canonical_name(name: str, short: str) -> None:
    assert canonical(name) == short


def test_gain_and_direction_are_never_confused() -> None:
    name = "encoder.pos_conv_embed.conv"
    base: Shapes = {f"{name}.weight_g": (4, 4), f"{name}.weight_v": (4, 4), "encoder.layers.0.w": (4, 4)}
    finetuned: Shapes = {
        f"{name}.parametrizations.weight.original1": (4, 4),
        f"{name}.parametrizations.weight.original0": (4, 4),
        "encoder.layers.0.w": (4, 4),
    }
    assert align(base, finetuned).pairs == {
        f"{name}.weight_g": f"{name}.parametrizations.weight.original0",
        f"{name}.weight_v": f"{name}.parametrizations.weight.original1",
        "encoder.layers.0.w": "encoder.layers.0.w",
    }


# tensors that one side lacks
@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2", "WavLM", "Data2VecAudio", "Wav2Vec2Bert"])
@pytest.mark.parametrize("in_base", [True, False])
def test_a_mask_embedding_on_one_side_only_disturbs_nothing(family: str, in_base: bool) -> None:
    for base, finetuned in itertools.product(CLASSES[family], repeat=2):
        ours, theirs = dict(shapes(family, base)), dict(shapes(family, finetuned))
        lacking = theirs if in_base else ours
        lost = next(name for name in lacking if name.endswith("masked_spec_embed"))
        del lacking[lost]
        wanted = expected(family, base, finetuned)
        kept = {a: b for a, b in wanted.items() if lost not in (a, b) or a.endswith("masked_spec_embed") is False}
        assert align(ours, theirs).pairs == kept


def test_a_quantizer_of_the_base_is_a_head() -> None:
    for finetuned in CLASSES["Wav2Vec2"]:
        found = align(dict(shapes("Wav2Vec2", "ForPreTraining")), dict(shapes("Wav2Vec2", finetuned)))
        assert found.base_prefix == "wav2vec2."
        assert not any(name.startswith(("quantizer", "project_")) for name in within(found.base_names))


@given(lost=st.sets(st.integers(0, 50), max_size=25))
@settings(max_examples=40)
def test_what_is_left_of_a_finetune_still_matches(lost: set[int]) -> None:
    theirs = dict(shapes("Hubert", "ForCTC"))
    for name in list(itertools.compress(theirs, [i in lost for i in range(len(theirs))])):
        del theirs[name]
    wanted = {a: b for a, b in expected("Hubert", "Model", "ForCTC").items() if b in theirs}
    assert align(dict(shapes("Hubert", "Model")), theirs).pairs == wanted


# names and shapes
def test_an_architecture_that_nobody_knows_matches_by_its_names() -> None:
    base: Shapes = {f"blocks.{i}.mixer.{part}": (8, 8 + i) for i in range(12) for part in ("up", "down")}
    base |= {"stem.kernel": (8, 1, 3), "norm_out.scale": (8,)}
    for prefix in ("", "tower.", "my_lightning_module.net.", "model."):
        finetuned = with_prefix(prefix, base) | {"verdict.weight": (8, 5), "verdict.bias": (5,)}
        found = align(base, finetuned)
        assert found.pairs == {name: prefix + name for name in base}
        assert found.mismatched == {}
        assert align(finetuned, base).pairs == {prefix + name: name for name in base}


def test_layers_one_and_ten_are_never_confused() -> None:
    full: Shapes = {f"encoder.layers.{i}.fc.weight": (4, 4) for i in range(12)}
    found = align(full, with_prefix("hubert.", full))
    assert found.pairs == {name: f"hubert.{name}" for name in full}
    lost = "encoder.layers.1.fc.weight"
    fewer = with_prefix("hubert.", {name: shape for name, shape in full.items() if name != lost})
    assert lost not in align(full, fewer).pairs


def test_equal_names_with_other_shapes_are_mismatched_even_if_they_would_broadcast() -> None:
    base = dict(shapes("Hubert", "Model"))
    name = "encoder.layers.1.feed_forward.intermediate_dense.weight"
    found = align(base, with_prefix("hubert.", base | {name: (1, base[name][1])}))
    assert found.mismatched == {name: f"hubert.{name}"}
    assert name not in found.pairs


def test_models_without_a_common_name_have_no_pairs() -> None:
    found = align({"a.b": (2,), "c": (3,)}, {"x.y": (2,), "z": (3,)})
    assert (found.pairs, found.heads, found.mismatched) == ({}, {}, {})


@given(data=st.data())
@settings(max_examples=40)
def test_the_order_of_names_does_not_matter(data: st.DataObject) -> None:
    base, finetuned = dict(shapes("Wav2Vec2", "ForPreTraining")), dict(shapes("Wav2Vec2", "ForXVector"))
    found = align(dict(data.draw(st.permutations(list(base.items())))), finetuned)
    assert found.pairs == expected("Wav2Vec2", "ForPreTraining", "ForXVector")
