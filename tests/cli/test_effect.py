"""An option that would change nothing, and a model given twice, are refused before anything is opened or written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from speechft_merge import open_checkpoint
from speechft_merge.checkpoints.distinct import require_distinct
from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from conftest import Pair, Run, Snapshot, Tiny

COMPARISON = {
    "--probe": "clips", "--group-by": "file", "--probe-seconds": "10", "--estimator": "frame", "--null": None,
    "--memory": "1GB", "--plot": "a.png", "--heatmap": "b.png", "--csv": "c.csv",
}  # fmt: skip
HUB = {"--private": None, "--create-pr": None, "--branch": "dev", "--commit-message": "A merge"}


def words_of(options: dict[str, str | None]) -> list[str]:
    return [word for option, value in options.items() for word in (option, value) if word is not None]


@pytest.mark.parametrize(
    ("option", "value", "needed"),
    [
        *((option, value, "--cka") for option, value in COMPARISON.items()),
        *((option, value, "--push-to-hub") for option, value in HUB.items()),
        ("--weight", "2", "one fine-tune"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["merge", "dry-run"])
def test_an_option_without_the_one_that_it_serves_is_refused_and_both_are_named(
    option: str, value: str | None, needed: str, dry: list[str], pair: Pair, run: Run, tmp_path: Path
) -> None:
    ran = run(*pair.args, *words_of({option: value}), "-o", "out", *dry)
    assert (ran.code, ran.out) == (2, "")
    assert f"{option} has no effect with" in ran.err
    assert needed in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "needed"), [(COMPARISON, "--cka"), (HUB, "--push-to-hub")])
def test_all_that_are_without_effect_are_named_at_once(
    options: dict[str, str | None], needed: str, pair: Pair, run: Run
) -> None:
    ran = run(*pair.args, *words_of(options))
    assert ran.code == 2
    assert f"{' and '.join(options)} have no effect without {needed}" in ran.err


@pytest.mark.parametrize("words", [["--alpha", "0.5"], ["--layer-alpha", "cnn=0"], ["--recipe", "recipe.yaml"]])
def test_a_merge_that_is_given_is_not_mixed_again(words: list[str], pair: Pair, run: Run) -> None:
    ran = run("compare", *pair.args, "merged", *words)
    assert (ran.code, ran.out) == (2, "")
    assert f"{words[0]} has no effect on a merge that is given (merged)" in ran.err


def test_the_weight_of_one_finetune_in_a_recipe_is_refused_as_the_option_is(
    pair: Pair, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("weight: [2]")
    ran = run(*pair.args, "--recipe", "recipe.yaml", "-o", "out")
    assert (ran.code, ran.out) == (2, "")
    assert "--weight has no effect with one fine-tune" in ran.err


@pytest.mark.parametrize("words", ["--overwrite --no-fsync --max-shard-size 1GB", "--push-to-hub me/x --private"])
def test_a_dry_run_takes_every_option_of_the_merge_that_it_stands_for(words: str, pair: Pair, run: Run) -> None:
    assert run(*pair.args, "-o", "out", "--dry-run", *words.split()).code == 0


def names_of_the_base(folder: Path) -> list[str]:
    """Ways to name the one model in `folder/base`."""
    (folder / "link").symlink_to(folder / "base")
    (folder / "hard").mkdir()
    os.link(folder / "base/model.safetensors", folder / "hard/model.safetensors")
    return ["base", "base/", "./base", str(folder / "base"), "link", "base/model.safetensors", "link/../base", "hard"]


def test_the_base_is_no_finetune_of_itself_whatever_it_is_called(
    copied: list[str], run: Run, snapshot: Snapshot, tmp_path: Path
) -> None:
    names = names_of_the_base(tmp_path)
    before = snapshot(tmp_path)
    for name in names:
        ran = run("base", name, "-o", "out", "-q")
        assert (ran.code, ran.out) == (2, ""), name
        assert ("base is given twice" if name == "base" else f"base and {name} are the same model") in ran.err
    assert snapshot(tmp_path) == before


def test_two_models_in_one_file_are_two(tiny: Tiny, tmp_path: Path) -> None:
    base = {name: torch.from_numpy(values) for name, values in tiny.weights().items()}
    torch.save({"a": base, "b": {name: 2 * tensor for name, tensor in base.items()}}, tmp_path / "both.pt")
    with open_checkpoint(tmp_path / "both.pt") as one:
        spans = [*one.tensors.values()]
        half = [
            dict(zip(one.tensors, part, strict=False)) for part in (spans[: len(spans) // 2], spans[len(spans) // 2 :])
        ]
        require_distinct([replace(one, tensors=tensors) for tensors in half])
        require_distinct([one, replace(one, state_path="elsewhere")])
        with pytest.raises(UsageError):
            require_distinct([one, replace(one, reference="again")])


def test_a_finetune_does_not_count_twice(copied: list[str], tiny: Tiny, run: Run, tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other", tiny.ctc(tiny.finetuned(tiny.read(tmp_path / "base"), seed=2)))
    ran = run("base", "finetuned", other, "finetuned/model.safetensors", "-o", "out")
    assert (ran.code, ran.out) == (2, "")
    assert "finetuned and finetuned/model.safetensors are the same model" in ran.err
    assert run("base", "finetuned", other, "-o", "out").code == 0


def test_a_copy_of_the_base_is_another_model(copied: list[str], run: Run, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    ran = run("base", "copy", "-o", "out", "-q")
    assert (ran.code, ran.out) == (0, "out\n")
    assert "does not differ from the base anywhere" in ran.err


def test_a_comparison_with_the_base_itself_is_refused(pair: Pair, run: Run) -> None:
    ran = run("compare", pair.base, pair.base)
    assert (ran.code, ran.out) == (2, "")
    assert "is given twice" in ran.err
