"""What a user may ask for, and that it can be written down and asked for again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.choices import DTYPES
from speechft_merge.errors import NotFoundError, UsageError
from speechft_merge.recipe.file import read_recipe
from speechft_merge.recipe.recipe import Recipe, override
from speechft_merge.recipe.rules import AlphaRule, parse_rule

if TYPE_CHECKING:
    from pathlib import Path

shares = st.floats(0, 1)
rules = st.builds(
    AlphaRule, st.sampled_from(["layers", "encoder", "0-5", "decoder.3", "11"]), shares, shares
) | st.builds(
    lambda s, x: AlphaRule(s, x, x), st.sampled_from(["cnn", "head", "**.fc1.*", "yes", "a: #b", "x"]), shares
)
recipes = st.builds(
    Recipe,
    alpha=shares,
    layer_alpha=st.lists(rules, max_size=4).map(tuple),
    weight=st.lists(st.floats(0, exclude_min=True, allow_infinity=False), max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    keep_head=st.booleans(),
    extrapolate=st.booleans(),
)
on_disk = settings(max_examples=60)


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_recipe(path)


# files
@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
@on_disk
@given(recipe=recipes)
def test_a_recipe_written_to_a_file_reads_as_itself(recipe: Recipe, write: Any, tmp_path: Path) -> None:
    assert read(tmp_path, write(recipe.to_json())) == recipe


@on_disk
@given(recipe=recipes)
def test_a_recipe_can_be_read_from_a_manifest(recipe: Recipe, tmp_path: Path) -> None:
    """But for the weight of a single fine-tune, which earlier versions took and which has no effect."""
    manifest = {"format": 1, "recipe": recipe.to_json(), "base": {"reference": "b"}, "outputs": []}
    effective = replace(recipe, weight=()) if len(recipe.weight) == 1 else recipe
    assert read(tmp_path, json.dumps(manifest, indent=2)) == effective


def test_a_recipe_can_be_read_from_a_manifest_of_version_0_1(tmp_path: Path) -> None:
    """Its rows of layers, and its name of the weights, are no longer ours."""
    manifest = {
        "format": 1, "speechft_merge": "0.1.0", "merge_id": "d243", "layers": [{"layer": "cnn", "alpha": "0.3"}],
        "recipe": {
            "alpha": 0.3, "layer_alpha": ["0=0.1"], "weights": [1.0, 3.0], "dtype": "float16", "format": "safetensors",
            "keep_head": True, "extrapolate": False,
        },
    }  # fmt: skip
    rules = (AlphaRule("0", 0.1, 0.1),)
    assert read(tmp_path, json.dumps(manifest)) == Recipe(0.3, rules, (1.0, 3.0), "float16", "safetensors", True)


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("{}", Recipe()),
        ("alpha: 0.4", Recipe(alpha=0.4)),
        ("alpha: 1", Recipe(alpha=1)),
        ("alpha: 1e-3", Recipe(alpha=0.001)),
        (
            "layer_alpha: [cnn=0, '0-11=0.1:0.5']",
            Recipe(layer_alpha=(AlphaRule("cnn", 0, 0), AlphaRule("0-11", 0.1, 0.5))),
        ),
        ("layer_alpha: {cnn: 0, 3: 0.5}", Recipe(layer_alpha=(AlphaRule("cnn", 0, 0), AlphaRule("3", 0.5, 0.5)))),
        ("layer_alpha:\n  layers: 0.1:0.5", Recipe(layer_alpha=(AlphaRule("layers", 0.1, 0.5),))),
        ("weight: [1, 2.5]", Recipe(weight=(1, 2.5))),
        ("weights: [1, 2.5]", Recipe(weight=(1, 2.5))),  # of a manifest that version 0.1 wrote
        ("dtype: float16\nkeep_head: true", Recipe(dtype="float16", keep_head=True)),
        ("alpha: 1.5\nextrapolate: true", Recipe(alpha=1.5, extrapolate=True)),
    ],
)
def test_a_recipe_may_be_written_by_hand(text: str, recipe: Recipe, tmp_path: Path) -> None:
    assert read(tmp_path, text) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "NoneType"),
        ("[]", "list"),
        ("0.25", "float"),
        ("alpah: 0.25", "holds alpah; give a table with some of alpha"),
        ("alpha: 0.5\n1: 2", "holds 1"),
        ("alpha: [", "not valid YAML"),
        ("alpha: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("alpha:", "not a number"),
        ("alpha: true", "not a number"),
        ("alpha: much", "not a number"),
        ("alpha: .nan", "finite"),
        ("alpha: 1.5", "outside"),
        ("layer_alpha: [cnn]", "not a rule"),
        ("layer_alpha: [[cnn]]", "not a rule"),
        ("weight: [x]", "not a number"),
        ("weight: [0]", "positive"),
        ("dtype: int8", "use one of keep, float32, float16, bfloat16"),
        ("keep_head: 1", "true or false"),
        ("extrapolate: 'no'", "true or false"),
        ("recipe: {alpha: 2}", "outside"),
        ("recipe: 3", "holds recipe"),
        ("alpha: 2024-13-45", "not valid YAML"),
        (f"alpha: {'1' * 5000}", "not valid YAML"),
        (f"alpha: {'[' * 1000}", "not valid YAML"),
        ('alpha: !!int ""', "not valid YAML"),
        ('alpha: !!float ""', "not valid YAML"),
        ("keep_head: !!bool x", "not valid YAML"),
        ("alpha: !!timestamp x", "not valid YAML"),
        (f"alpha: 0x{'f' * 6000}", "too large"),
        (f"weight: [0x{'f' * 6000}]", "too large"),
        (f"dtype: 0x{'f' * 6000}", "too large"),
        (f"layer_alpha: {{cnn: 0x{'f' * 6000}}}", "too large"),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_recipe_is_refused_in_words(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


def test_rules_and_numbers_may_be_given_as_text() -> None:
    given_: Any = {"alpha": "0.3", "layer_alpha": ["0=0.1", AlphaRule("layers", 0, 1)], "weight": ["1", 3]}
    assert Recipe(layer_alpha="cnn=0").rules == (AlphaRule("cnn", 0, 0),)
    assert Recipe(**given_) == Recipe(0.3, (AlphaRule("0", 0.1, 0.1), AlphaRule("layers", 0, 1)), (1, 3))


@pytest.mark.parametrize("rules", ["0", 0.1, None, (0.1,), ("0",), (None,)])
def test_what_are_no_rules_are_refused_in_words(rules: Any) -> None:
    with pytest.raises(UsageError, match="is not a rule"):
        Recipe(layer_alpha=rules)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00alpha")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_recipe(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot read the recipe"):
        read_recipe(tmp_path / name)


# alphas
@pytest.mark.parametrize("alpha", [-0.1, 1.0001, 2.0, -1e-300])
def test_an_alpha_outside_of_0_to_1_must_be_meant(alpha: float) -> None:
    for given_ in ({"alpha": alpha}, {"layer_alpha": (AlphaRule("layers", 0.5, alpha),)}):
        with pytest.raises(UsageError, match="pass --extrapolate"):
            Recipe(**given_)
        Recipe(extrapolate=True, **given_)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_an_alpha_that_is_no_number_is_never_right(alpha: float) -> None:
    for given_ in ({"alpha": alpha}, {"layer_alpha": (AlphaRule("layers", alpha, 0.5),)}):
        with pytest.raises(UsageError, match="finite"):
            Recipe(extrapolate=True, **given_)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5, -0.0])
def test_both_ends_are_allowed(alpha: float) -> None:
    assert Recipe(alpha=alpha).alpha == alpha


# weights
@pytest.mark.parametrize("weights", [(0.0,), (-1.0,), (math.nan,), (math.inf,), (1.0, 0.0)])
def test_weights_are_positive_numbers(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="positive number"):
        Recipe(weight=weights)


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
def test_weights_are_normalised_to_one(weights: list[float]) -> None:
    found = Recipe(weight=tuple(weights)).coefficients(len(weights))
    assert math.fsum(found) == pytest.approx(1, rel=1e-12)
    assert [a / found[0] for a in found] == pytest.approx([a / weights[0] for a in weights], rel=1e-9)


@given(st.floats(0, exclude_min=True, allow_infinity=False))
def test_a_weight_for_a_single_finetune_would_change_nothing_and_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="no effect with one fine-tune"):
        Recipe(weight=(weight,)).coefficients(1)


def test_equal_weights_by_default() -> None:
    assert [Recipe().coefficients(count) for count in (1, 2, 4)] == [(1.0,), (0.5,) * 2, (0.25,) * 4]


# what is given on top
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_an_alpha_on_top_of_a_recipe_wins_even_if_it_is_zero(alpha: float) -> None:
    assert override(Recipe(alpha=0.7), alpha=alpha).alpha == alpha


def test_what_is_not_given_stays() -> None:
    recipe = Recipe(alpha=0.7, layer_alpha=(parse_rule("cnn=0"),), weight=(1.0, 2.0), dtype="float16", keep_head=True)
    nothing = {"alpha": None, "layer_alpha": (), "weight": (), "dtype": None, "keep_head": False, "extrapolate": False}
    assert override(recipe, **nothing) == recipe


def test_a_default_alpha_goes_with_its_method_and_a_given_one_stays() -> None:
    assert override(Recipe(), method="task-arithmetic") == Recipe(method="task-arithmetic")
    assert override(Recipe(0.4), method="task-arithmetic").alpha == 0.4
    assert override(Recipe(method="model-stock"), method="mean").alpha == Recipe().alpha
    assert override(Recipe(), method="model-stock", alpha=0.25).alpha == 0.25


def test_rules_on_top_come_last() -> None:
    recipe = override(Recipe(layer_alpha=(parse_rule("cnn=0"),)), layer_alpha=(parse_rule("cnn=0.5"),))
    assert [str(rule) for rule in recipe.layer_alpha] == ["cnn=0.0", "cnn=0.5"]


def test_the_rest_on_top_replaces() -> None:
    recipe = override(Recipe(weight=(1.0,), dtype="float16"), weight=(2.0, 1.0), dtype="float32", keep_head=True)
    assert recipe == Recipe(weight=(2.0, 1.0), dtype="float32", keep_head=True)


def test_the_whole_is_checked_again() -> None:
    with pytest.raises(UsageError, match="extrapolate"):
        override(Recipe(), alpha=1.5)
    assert override(Recipe(), alpha=1.5, extrapolate=True).alpha == 1.5


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("fp16", "float16"),
        ("half", "float16"),
        ("bf16", "bfloat16"),
        ("fp32", "float32"),
        ("torch.bfloat16", "bfloat16"),
    ],
)
def test_an_element_type_may_have_its_other_names(given: str, dtype: str, tmp_path: Path) -> None:
    assert Recipe(dtype=given).dtype == dtype
    (tmp_path / "recipe.yaml").write_text(f"dtype: {given}")
    assert read_recipe(tmp_path / "recipe.yaml").dtype == dtype


@pytest.mark.parametrize(
    ("text", "alpha"), [("25%", 0.25), ("12.3%", 0.123), ("100%", 1.0), ("0%", 0.0), ("1e1%", None)]
)
def test_an_alpha_may_be_in_percent(text: str, alpha: float | None) -> None:
    if alpha is None:
        with pytest.raises(UsageError, match="not a number"):
            parse_rule(f"cnn={text}")
    else:
        assert Recipe.from_json({"alpha": text}).alpha == alpha
        assert parse_rule(f"cnn={text}").start == alpha


def test_an_alpha_that_seems_to_be_in_percent_is_answered_so() -> None:
    with pytest.raises(UsageError, match="25% if that is meant"):
        Recipe(alpha=25.0)
