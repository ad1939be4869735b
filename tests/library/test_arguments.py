"""Wrong arguments get this package's own errors, which say what was found, what was expected and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import speechft_merge as sm
from speechft_merge import MergeOptions, ProbeRequest, Recipe, compare, merge, open_merge
from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Pair

BASE, FINETUNED = (str(Path(__file__).parents[2] / "examples/pair" / name) for name in ("base", "finetuned"))
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "alpha in place of a recipe": (
        lambda: merge(BASE, FINETUNED, "o", 0.25),
        "must be a Recipe; found float 0.25",
    ),
    "a recipe as a dictionary": (
        lambda: open_merge(BASE, FINETUNED, {"alpha": 0.3}),
        "must be a Recipe; found dict",
    ),
    "a recipe as a path": (lambda: compare(BASE, FINETUNED, recipe="recipe.yaml"), "must be a Recipe.*read_recipe"),
    "options as a dictionary": (lambda: sm.verify("o", options={"workers": 2}), "must be a MergeOptions; found dict"),
    "a probe in place of its request": (lambda: compare(BASE, FINETUNED, request="dev"), "must be a ProbeRequest"),
    "loaded weights": (
        lambda: merge({"a": 1}, FINETUNED, "o"),
        "base must be text or a path; found dict.*LiveMerge",
    ),
    "no model": (lambda: open_merge(BASE, None), "finetuned must be text or a path; found NoneType"),
    "one of several no model": (
        lambda: open_merge(BASE, [FINETUNED, 3]),
        "finetuned must be text or a path; found int 3",
    ),
    "a path in bytes": (lambda: sm.open_checkpoint(b"base"), "must be text or a path; found bytes"),
    "no output": (lambda: merge(BASE, FINETUNED, None), "output must be text or a path"),
    "a size in words": (lambda: MergeOptions(max_shard_size="2GB"), "max_shard_size must be a whole number or None"),
    "a flag in words": (lambda: MergeOptions(overwrite="yes"), "overwrite must be True or False; found str 'yes'"),
    "a flag for a number": (lambda: MergeOptions(workers=True), "workers must be a whole number or None; found bool"),
    "half a worker": (lambda: MergeOptions(workers=1.5), "workers must be a whole number or None"),
    "seconds in words": (lambda: ProbeRequest(seconds="60"), "seconds must be a number; found str '60'"),
    "a probe of numbers": (lambda: ProbeRequest(paths=[1]), "paths must be"),
    "a number for a rule": (lambda: Recipe(layer_alpha=[0.5]), "layer_alpha: '0.5' is not a rule.*SELECTOR=ALPHA"),
    "a flag for an alpha": (lambda: Recipe(alpha=True), "alpha: 'True' is not a number"),
    "gates as text": (lambda: sm.Rule("asr", "emotion>=base"), "gates must be a list, each a Gate"),
    "a sweep of alphas": (lambda: sm.SweepRequest([0.25]), "cells must be a list, each a Cell"),
    "a gate that is a number": (lambda: sm.parse_gate(3), "a gate must be text; found int 3"),
    "a grid of words": (lambda: sm.lay_out(["x"]), "alphas must be a list, each a number"),
    "loaded models that are none": (lambda: sm.merge_state_dicts(torch.nn.Linear(1, 1), 2), "a model is given as int"),
    "a recipe from a number": (lambda: sm.read_recipe(3), "path must be text or a path; found int 3"),
    "both alpha and a recipe": (
        lambda: merge(BASE, FINETUNED, "o", Recipe(), alpha=1.0),
        "both alpha and a recipe",
    ),
}


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_told_in_words(
    call: Callable[[], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        call()
    assert [*tmp_path.iterdir()] == []


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.binary()))
def test_any_value_of_an_option_is_taken_or_refused(value: Any) -> None:
    for kind, names in (
        (sm.MergeOptions, ("workers", "fsync", "device")),
        (sm.ProbeRequest, ("paths", "memory", "null")),
    ):
        for name in names:
            try:
                made: Any = kind(**{name: value})
            except UsageError:
                continue
            assert getattr(made, name) is value


@pytest.mark.parametrize("kind", [str, Path])
def test_models_and_outputs_are_text_or_paths(kind: Any, pair: Pair, tmp_path: Path) -> None:
    base, finetuned, output = kind(pair.base), kind(pair.finetuned), kind(tmp_path / "merged")
    result = sm.merge(base, finetuned, output)
    assert sm.merge(base, [finetuned], output).already_done
    assert sm.verify(output, [base, finetuned]).differences == ()
    with sm.open_merge(base, finetuned) as opened, sm.open_checkpoint(output) as made:
        assert opened.plan.counts.items() <= result.manifest.counts.items()
        assert made.tensors.keys() == opened.base.tensors.keys()


@pytest.mark.parametrize("paths", ["dev", Path("dev"), ["dev"], (Path("dev"),)])
def test_a_probe_is_a_path_or_several(paths: Any) -> None:
    assert sm.ProbeRequest(paths=paths).files == (Path("dev"),)


def test_rules_are_text_or_a_dictionary() -> None:
    rules = sm.Recipe(layer_alpha=["cnn=0", "0-5=0.1"])
    assert rules == sm.Recipe(layer_alpha={"cnn": 0, "0-5": 0.1})
    assert [str(rule) for rule in rules.rules] == ["cnn=0.0", "0-5=0.1"]
