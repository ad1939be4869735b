"""Rules that give some tensors an alpha of their own."""

from __future__ import annotations

import math
import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.errors import UsageError
from speechft_merge.layouts.naming import TensorName
from speechft_merge.layouts.structure import PARTS, Location, locate
from speechft_merge.recipe import Recipe
from speechft_merge.recipe.alpha import parse_alpha
from speechft_merge.recipe.rules import AlphaRule, _matches, alphas_of, parse_rule

DEFAULT = 0.25
NAMES = (
    "masked_spec_embed",
    "feature_extractor.conv_layers.0.conv.weight",
    "feature_projection.projection.weight",
    "encoder.pos_conv_embed.conv.weight_g",
    "encoder.layer_norm.weight",
    *(
        f"encoder.layers.{i}.{inner}"
        for i in range(12)
        for inner in ("attention.q_proj.weight", "attention.q_proj.bias", "feed_forward.output_dense.weight")
    ),
    *(f"decoder.layers.{i}.fc1.weight" for i in range(4)),
    "decoder.embed_tokens.weight",
    "decoder.layer_norm.bias",
)
HEADS = ("lm_head.weight", "lm_head.bias")
SUBJECTS = {
    **{f"model.{name}": TensorName(name, location) for name, location in locate(dict.fromkeys(NAMES, ())).items()},
    **{name: TensorName(name, Location("head", "")) for name in HEADS},
}


def alphas(*rules: str) -> dict[str, float]:
    """By relative name, all that have one."""
    found = alphas_of(SUBJECTS, DEFAULT, tuple(parse_rule(rule) for rule in rules))
    return {name.canonical: found[own] for own, name in SUBJECTS.items() if own in found}


def chosen(selector: str) -> set[str]:
    return {name for name, alpha in alphas(f"{selector}=0.9").items() if alpha == 0.9}


def layer(index: int, stack: str = "encoder") -> set[str]:
    return {name for name in NAMES if name.startswith(f"{stack}.layers.{index}.")}


# grammar
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0-5=0.1", AlphaRule("0-5", 0.1, 0.1)),
        ("cnn=0", AlphaRule("cnn", 0, 0)),
        (" layers=0.1:0.5 ", AlphaRule("layers", 0.1, 0.5)),
        ("0-11=0.5:0.1", AlphaRule("0-11", 0.5, 0.1)),
        ("decoder.0-3=1:0", AlphaRule("decoder.0-3", 1, 0)),
        ("**.fc1.*=1e-2", AlphaRule("**.fc1.*", 0.01, 0.01)),
        ("odd=name=0.5", AlphaRule("odd=name", 0.5, 0.5)),
    ],
)
def test_a_rule_reads_as_selector_and_alpha(text: str, rule: AlphaRule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a rule"),
        ("cnn", "is not a rule"),
        ("=0.5", "is not a rule"),
        ("cnn=", "is not a number"),
        ("cnn=x", "is not a number"),
        ("cnn=0,5", "is not a number"),
        ("layers=0.1:", "is not a number"),
        ("layers=:0.1", "is not a number"),
        ("layers=0.1:0.2:0.3", "is not a number"),
        ("cnn=nan", "must be finite"),
        ("layers=0:inf", "must be finite"),
        ("cnn=0.1:0.5", "a ramp goes over blocks, and .* has none"),
        ("**.fc1.*=0.1:0.5", "a ramp goes over blocks, and .* has none"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_rule(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "", "a", "1e999", "0x1"])
def test_an_alpha_is_a_finite_number(text: str) -> None:
    with pytest.raises(UsageError):
        parse_alpha(text)


selectors = st.from_regex(r"[a-z0-9.*_-]{1,12}", fullmatch=True)
ramps = st.from_regex(r"(layers|encoder|decoder|(decoder\.)?[0-9]{1,2}(-[0-9]{1,2})?)", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(AlphaRule, ramps, numbers, numbers) | st.builds(lambda s, x: AlphaRule(s, x, x), selectors, numbers))
def test_a_rule_written_out_reads_as_itself(rule: AlphaRule) -> None:
    assert parse_rule(str(rule)) == rule


# what is selected
@pytest.mark.parametrize("index", range(12))
def test_a_layer_is_itself_and_no_other(index: int) -> None:
    assert chosen(str(index)) == chosen(f"encoder.{index}") == layer(index)


def test_layer_one_is_never_ten_or_eleven() -> None:
    for selector in ("1", "encoder.layers.1.**", "model.encoder.layers.1.**", "encoder.1"):
        assert chosen(selector) == layer(1), selector
    assert chosen("**.1.**") == layer(1) | layer(1, "decoder")


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 5), (3, 4), (9, 11), (0, 11)])
def test_a_range_has_both_its_ends(low: int, high: int) -> None:
    assert chosen(f"{low}-{high}") == set().union(*(layer(i) for i in range(low, high + 1)))


def test_layers_without_a_stack_are_the_encoders() -> None:
    assert chosen("0-3") == set().union(*(layer(i) for i in range(4)))
    assert chosen("decoder.0-3") == set().union(*(layer(i, "decoder") for i in range(4)))
    assert chosen("decoder.2") == layer(2, "decoder")


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("cnn", {"feature_extractor.conv_layers.0.conv.weight"}),
        ("projection", {"feature_projection.projection.weight"}),
        ("pos_conv", {"encoder.pos_conv_embed.conv.weight_g"}),
        ("final_norm", {"encoder.layer_norm.weight", "decoder.layer_norm.bias"}),
        ("other", {"masked_spec_embed", "decoder.embed_tokens.weight"}),
        ("layers", {name for name in NAMES if ".layers." in name}),
        ("encoder", {name for name in NAMES if name.startswith("encoder.")}),
        ("decoder", {name for name in NAMES if name.startswith("decoder.")}),
        ("head", set(HEADS)),
    ],
)
def test_parts_and_stacks_are_named(selector: str, names: set[str]) -> None:
    assert chosen(selector) == names


def test_every_part_can_be_named() -> None:
    assert all(chosen(part) for part in PARTS)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("encoder.layers.*.attention.q_proj.weight", 12),
        ("encoder.layers.*.attention.**", 24),
        ("encoder.layers.*.attention.*", 0),  # `*` stays within a word
        ("**.q_proj.*", 24),
        ("**.q_proj", 0),  # anchored at the end
        ("layers.0.**", 0),  # and at the start
        ("q_proj", 0),
        ("encoder", 39 - 1),  # a stack, not a pattern
        ("**", len(NAMES) + len(HEADS)),
        ("**.weight", 2 * 12 + 4 + 2 + 1 + 1 + 1),
        ("model.**", len(NAMES)),
        ("*.layers.0.**", 4),
        ("encoder.**.weight", 2 * 12 + 1),
        ("**.layers.**.bias", 12),
        ("**.**.**.masked_spec_embed", 1),
        ("encoder.layers.[0-2].**", 9),
        ("encoder.layers.1?.**", 6),
        ("masked_spec_embe?", 1),
        ("lm_head.*", 2),
        ("LM_HEAD.*", 0),
    ],
)
def test_a_pattern_is_on_the_words_of_a_whole_name(pattern: str, count: int) -> None:
    if count:
        assert len(chosen(pattern)) == count
    else:
        with pytest.raises(UsageError, match="matches nothing"):
            alphas(f"{pattern}=0.9")


@given(st.sampled_from(NAMES))
def test_a_name_selects_itself_only(name: str) -> None:
    assert chosen(name) == {name}
    assert chosen(f"model.{name}") == {name}


# alphas
def test_without_a_rule_all_but_heads_have_the_default() -> None:
    assert alphas() == dict.fromkeys(NAMES, DEFAULT)


def test_later_rules_win() -> None:
    found = alphas("layers=0.1", "0-5=0.2", "encoder.layers.3.**=0.3", "3=0.4")
    assert {found[name] for name in layer(3)} == {0.4}
    assert {found[name] for name in layer(5)} == {0.2}
    assert {found[name] for name in layer(7)} == {0.1}
    assert {alphas("3=0.4", "layers=0.1")[name] for name in layer(3)} == {0.1}


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from([0.0, 0.1, 0.5, 1.0])), max_size=8))
def test_the_last_rule_on_a_layer_is_the_one_that_counts(rules: list[tuple[int, float]]) -> None:
    found = alphas(*(f"{index}={alpha}" for index, alpha in rules))
    last = dict(rules)
    for index in range(12):
        assert {found[name] for name in layer(index)} == {last.get(index, DEFAULT)}


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 11), st.integers(0, 11))
def test_a_ramp_is_exact_at_its_ends_and_even_and_monotone_between(
    start: float, stop: float, one: int, other: int
) -> None:
    low, high = sorted((one, other))
    found = alphas(f"{low}-{high}={start!r}:{stop!r}")
    values = [found[next(iter(layer(index)))] for index in range(low, high + 1)]
    assert values[0] == start
    assert high == low or values[-1] == stop
    assert values == sorted(values, reverse=stop < start) or max(values) - min(values) < 1e-15
    for index, value in enumerate(values):
        share = index / (high - low) if high > low else 0
        assert math.isclose(value, (1 - share) * start + share * stop, abs_tol=1e-12)


@pytest.mark.parametrize("index", range(12))
def test_all_tensors_of_a_layer_have_the_same_alpha_on_a_ramp(index: int) -> None:
    found = alphas("0-11=0.1:0.5")
    assert len({found[name] for name in layer(index)}) == 1


def test_a_ramp_over_a_stack_starts_before_its_layers() -> None:
    found = alphas("encoder=0.1:0.5")
    assert found["encoder.pos_conv_embed.conv.weight_g"] == found["encoder.layer_norm.weight"] == 0.1
    assert found["encoder.layers.0.attention.q_proj.bias"] == 0.1
    assert found["encoder.layers.11.attention.q_proj.bias"] == 0.5
    assert found["decoder.layers.0.fc1.weight"] == DEFAULT


def test_a_ramp_may_go_over_the_decoder() -> None:
    found = alphas("decoder.1-3=0:1")
    assert [found[f"decoder.layers.{i}.fc1.weight"] for i in range(4)] == [DEFAULT, 0, 0.5, 1]


# refusals
@pytest.mark.parametrize("rule", ["12=0.1", "0-12=0.1", "11-12=0.1:0.5", "5-3=0.1", "encoder.12=0", "100-200=0"])
def test_layers_that_the_model_lacks_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="the encoder has blocks 0 to 11"):
        alphas(rule)


@pytest.mark.parametrize("rule", ["decoder.4=0.1", "decoder.0-11=0.1"])
def test_decoder_layers_that_the_model_lacks_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="the decoder has blocks 0 to 3"):
        alphas(rule)


@pytest.mark.parametrize("rule", ["nothing=0.1", "encoder.layers.*=0.1", "Cnn=0", "encoder.layers.12.**=0", "cnn =0"])
def test_a_rule_that_matches_nothing_is_refused_with_what_there_is(rule: str) -> None:
    with pytest.raises(UsageError, match=r"matches nothing.*cnn, decoder, encoder, final_norm, head, layers"):
        alphas(rule)


def test_an_encoder_has_no_decoder_layers() -> None:
    bare = {own: name for own, name in SUBJECTS.items() if name.location.stack != "decoder"}
    with pytest.raises(UsageError, match="the decoder has no blocks"):
        alphas_of(bare, DEFAULT, (parse_rule("decoder.0=0.1"),))
    with pytest.raises(UsageError, match="matches nothing"):
        alphas_of(bare, DEFAULT, (parse_rule("decoder=0.1"),))


def test_a_rule_for_a_model_of_which_nothing_takes_part_is_refused() -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        alphas_of({}, DEFAULT, (parse_rule("cnn=0.1"),))


def test_names_of_any_length_are_quoted_in_part() -> None:
    names = {"y" * 300_000: TensorName("y" * 300_000, Location("layers", "x" * 100_000, 0))}
    with pytest.raises(UsageError, match="matches nothing") as caught:
        alphas_of(names, DEFAULT, (parse_rule("cnn=0.1"),))
    assert len(str(caught.value)) < 500


def matches_slowly(pattern: list[str], words: list[str]) -> bool:
    """The definition of a match; exponential."""
    if not pattern:
        return not words
    if pattern[0] == "**":
        return any(matches_slowly(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and fnmatchcase(words[0], pattern[0]) and matches_slowly(pattern[1:], words[1:])


WORDS = st.sampled_from(["a", "b", "ab", "1"])


@given(st.lists(st.sampled_from(["**", "*", "a", "a*", "?", "b", "1"]), max_size=7), st.lists(WORDS, max_size=7))
def test_a_pattern_matches_as_it_is_defined(pattern: list[str], words: list[str]) -> None:
    assert _matches(pattern, words) == matches_slowly(pattern, words)


@pytest.mark.parametrize("end", ["x", "weight"])
def test_stars_without_end_take_no_time(end: str) -> None:
    started = time.monotonic()
    for pattern in ([*["**"] * 300, end], [*["**", "a"] * 45, end], [*["**", "*a*a*a*a*a*a*b"] * 20, end]):
        for _ in range(1000):
            _matches(pattern, ["a"] * 10)
    _matches([*["**", "a"] * 45, end], ["a"] * 1000)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("selector", ["9" * 200, "0-" + "9" * 200, "[" * 250, "!" * 250])
def test_odd_selectors_are_usage_errors_at_once(selector: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="matches nothing"):
        alphas(f"{selector}=0.1")
    assert time.monotonic() - started < 10


def test_a_selector_or_a_list_of_rules_beyond_all_use_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 250 are allowed"):
        parse_rule("**." * 400 + "x=0.1")
    with pytest.raises(UsageError, match="at most 5000 are allowed"):
        Recipe(layer_alpha=tuple(AlphaRule("cnn", 0.1, 0.1) for _ in range(5001)))
