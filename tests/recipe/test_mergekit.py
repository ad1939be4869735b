"""A merge of mergekit's is read as the recipe that makes the same, or refused by the name of what it asks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from speechft_merge.errors import UsageError
from speechft_merge.recipe.file import RecipeFile, read_recipe_file
from speechft_merge.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(**content: Any) -> RecipeFile:
        path = tmp_path / "merge.yml"
        path.write_text(yaml.safe_dump(content))
        return read_recipe_file(path)

    return read


def models(**weights: Any) -> list[dict[str, Any]]:
    return [{"model": name} | ({} if w is None else {"parameters": {"weight": w}}) for name, w in weights.items()]


def coefficients(found: RecipeFile) -> dict[str, float]:
    """What of each fine-tune's difference goes in, where no rule says otherwise."""
    weights = found.recipe.coefficients(len(found.models) - 1)
    return {model: found.recipe.alpha * w for model, w in zip(found.models[1:], weights, strict=True)}


# which models, and how much of each
def test_a_linear_merge_without_a_base_is_one_onto_its_first_model(read: Any) -> None:
    found = read(merge_method="linear", models=models(a=1, b=2, c=5))
    assert found.models == ("a", "b", "c")
    assert coefficients(found) == {"b": pytest.approx(2 / 8), "c": pytest.approx(5 / 8)}


def test_a_linear_merge_gives_its_base_what_is_left(read: Any) -> None:
    found = read(merge_method="linear", base_model="c", models=models(a=1, b=2, c=0))
    assert (found.models, coefficients(found)) == (("c", "a", "b"), {"a": 1 / 3, "b": 2 / 3})
    found = read(merge_method="linear", models=models(a=0.5, b=0.8, c=-0.3), parameters={"normalize": False})
    assert coefficients(found) == {"b": 0.8, "c": -0.3}


def test_task_arithmetic_takes_coefficients_as_they_are(read: Any) -> None:
    found = read(merge_method="task_arithmetic", base_model="z", models=models(a=0.7, b=-2), parameters={"lambda": 0.5})
    assert (found.models, coefficients(found)) == (("z", "a", "b"), {"a": 0.35, "b": -1.0})
    found = read(
        merge_method="task_arithmetic", base_model="z", models=models(z=None, a=1, b=3), parameters={"normalize": True}
    )
    assert coefficients(found) == {"a": 0.25, "b": 0.75}
    assert coefficients(read(merge_method="task_arithmetic", base_model="z", models=models(a="3e-1"))) == {"a": 0.3}


def test_model_stock_is_ours(read: Any) -> None:
    found = read(merge_method="model_stock", base_model="z", models=models(a=None, z=None, b=None), dtype="float16")
    assert found == (Recipe(method="model-stock", dtype="float16"), ("z", "a", "b"))


def test_a_model_without_weight_of_its_own_has_that_of_all_and_one_of_zero_goes(read: Any) -> None:
    found = read(
        merge_method="task_arithmetic", base_model="z", models=models(a=None, b=0, c=2), parameters={"weight": 0.5}
    )
    assert coefficients(found) == {"a": 0.5, "c": 2.0}


@pytest.mark.parametrize(("dtypes", "dtype"), [({}, "keep"), ({"dtype": "bfloat16"}, "bfloat16"),
                         ({"dtype": "float32", "out_dtype": "float16"}, "float16")])  # fmt: skip
def test_the_output_has_the_type_that_is_asked_for(dtypes: dict[str, str], dtype: str, read: Any) -> None:
    assert read(merge_method="linear", models=models(a=1, b=1), **dtypes).recipe.dtype == dtype


# from place to place
def rules(found: RecipeFile) -> list[str]:
    return [f"{found.recipe.alpha:g}", *map(str, found.recipe.layer_alpha)]


def test_a_gradient_is_a_ramp_over_the_blocks_and_starts_outside_of_them(read: Any) -> None:
    found = read(merge_method="task_arithmetic", base_model="z", models=models(a=[0.1, 0.5]))
    assert rules(found) == ["0.1", "layers=0.1:0.5"]
    found = read(merge_method="linear", models=models(a=[1, 0], b=[0, 1]))
    assert rules(found) == ["0", "layers=0.0:1.0"]
    assert rules(read(merge_method="linear", models=models(a=[1, 1, 1], b=1))) == ["1"]


def test_filters_are_patterns_and_the_first_that_fits_wins(read: Any) -> None:
    weight = [{"filter": "attn.k", "value": 0.2}, {"filter": "attn", "value": 0.3}, {"value": 0.6}]
    found = read(merge_method="task_arithmetic", base_model="z", models=models(a=weight))
    assert rules(found) == ["0.6", "**.*attn*.**=0.3", "**.*attn.k*.**=0.2"]
    found = read(merge_method="task_arithmetic", base_model="z", models=models(a=None, b=None),
                 parameters={"weight": weight, "lambda": 0.5})  # fmt: skip
    assert rules(found)[0] == "1"
    assert [rule.start for rule in found.recipe.layer_alpha] == pytest.approx([0.5, 1 / 3])
    assert coefficients(found) == {"a": 0.3, "b": 0.3}


def test_what_lies_beyond_the_ends_extrapolates(read: Any) -> None:
    found = read(merge_method="task_arithmetic", base_model="z", models=models(a=[-1, 2]))
    assert (rules(found), found.recipe.extrapolate) == (["-1", "layers=-1.0:2.0"], True)
    assert not read(merge_method="task_arithmetic", base_model="z", models=models(a=2)).recipe.extrapolate


# refused
@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp", "passthrough", None, 3, ["linear"]])
def test_other_methods_are_refused_by_name(method: Any, read: Any) -> None:
    with pytest.raises(UsageError, match="is not supported") as refused:
        read(merge_method=method, models=models(a=1, b=1))
    assert str(method)[:6] in refused.value.message
    assert "linear, task_arithmetic, model_stock" in (refused.value.hint or "")


LINEAR = {"merge_method": "linear", "models": models(a=1, b=1)}
ARITHMETIC = {"merge_method": "task_arithmetic", "base_model": "z"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LINEAR | {"slices": []}, "slices"),
        (LINEAR | {"tokenizer_source": "base"}, "tokenizer_source"),
        (LINEAR | {"parameters": {"density": 0.5}}, "density"),
        (LINEAR | {"models": [{"model": "a", "parameters": {"density": 1}}]}, "density"),
        (LINEAR | {"models": models(a=1)}, "no fine-tune"),
        (LINEAR | {"models": models(a=1, b=None)}, "'b' has no weight"),
        (LINEAR | {"models": "a"}, "must be a list"),
        (LINEAR | {"models": ["a"]}, "has no model"),
        (LINEAR | {"models": [*models(a=1), *models(a=2)]}, "twice"),
        (LINEAR | {"models": models(a=1, b=-1)}, "sum to 0"),
        (LINEAR | {"models": models(a=1e308, b=1e308)}, "must be below"),
        (LINEAR | {"parameters": {"normalize": False}}, "sum to 2"),
        (LINEAR | {"parameters": {"normalize": "no"}}, "true or false"),
        (LINEAR | {"parameters": [1]}, "no table"),
        (LINEAR | {"base_model": ["a"]}, "base_model"),
        (LINEAR | {"dtype": "float64"}, "float64"),
        (LINEAR | {"models": models(a=1, b=[0, 1])}, "its own way"),
        (LINEAR | {"models": models(a=1, b=[0.5, 2])}, "its own way"),
        (ARITHMETIC | {"models": models(a=[0, 1], b=1)}, "its own way"),
        (ARITHMETIC | {"models": models(a=[0, 0.2, 1])}, "gradient of 3"),
        (ARITHMETIC | {"models": models(a=True)}, "no number"),
        (ARITHMETIC | {"models": models(a="much")}, "not a number"),
        (ARITHMETIC | {"models": models(a=math.inf)}, "finite"),
        (ARITHMETIC | {"models": models(a=[])}, "no number"),
        (ARITHMETIC | {"models": models(a=0)}, "the merge is the base"),
        (ARITHMETIC | {"models": models(a=[{"filter": "x", "value": 1}])}, "for what no filter names"),
        (ARITHMETIC | {"models": models(a=[{"filter": "*x", "value": 1}, 2])}, "no part of a name"),
        (ARITHMETIC | {"models": models(a=[{"filter": "x", "value": [1, 2]}, 2])}, "gradient within"),
        (ARITHMETIC | {"models": models(a=[{"filter": "x", "value": 1}, 2], b=[{"filter": "y", "value": 1}, 2])},
         "different filters"),
        ({"merge_method": "task_arithmetic", "models": models(a=1)}, "needs a base_model"),
        ({"merge_method": "model_stock", "base_model": "z", "models": models(a=1, b=1)}, "weight"),
        ({"merge_method": "model_stock", "base_model": "z", "models": models(a=None, b=None),
          "parameters": {"filter_wise": True}}, "filter_wise"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_express_is_refused_by_name(content: dict[str, Any], told: str, read: Any) -> None:
    with pytest.raises(UsageError, match=told):
        read(**content)
