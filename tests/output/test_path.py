"""Where an output may stand, and whether there is room for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from options import UNSYNCED

from speechft_merge import merge
from speechft_merge.errors import OutputError, UsageError, WriteError
from speechft_merge.output.path import default_name, require_modest, require_path, require_space
from speechft_merge.recipe import Recipe
from speechft_merge.recipe.rules import parse_rule


class Usage(NamedTuple):
    """As shutil.disk_usage has it."""

    total: int
    used: int
    free: int


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, free))


@pytest.mark.parametrize(("free", "fits"), [(99, False), (100, True), (101, True), (0, False)])
def test_a_merge_must_fit_the_disk(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_free(monkeypatch, free)
    if fits:
        require_space(tmp_path / "out", 100)
    else:
        with pytest.raises(WriteError, match=rf"needs 100 bytes, .* has {free} free; free some space") as caught:
            require_space(tmp_path / "out", 100)
        assert caught.value.exit_code == 74


def test_space_is_looked_up_where_the_output_will_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def note(path: Path) -> Usage:
        asked.append(path)
        return Usage(1, 0, 1000)

    monkeypatch.setattr(shutil, "disk_usage", note)
    monkeypatch.chdir(tmp_path)
    require_space(Path("not/yet/there"), 100)
    assert asked == [tmp_path]


def test_a_file_system_that_does_not_tell_its_space_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(_: Path) -> Usage:
        raise OSError("statvfs is not implemented")

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    require_space(tmp_path, 100)


def test_an_output_may_stand_beside_the_inputs_and_in_the_folder_of_an_input_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.safetensors").touch()
    require_path(tmp_path / "base-merged", [str(tmp_path / "base")])
    require_path(tmp_path / "base/merged", [str(tmp_path / "base/model.safetensors")])
    with pytest.raises(UsageError, match="overlap"):
        require_path(tmp_path / "base", [str(tmp_path / "base/model.safetensors")])


@pytest.mark.parametrize("name", ["merged.safetensors", "merged.pt", "base", "base/x/y", ".", "..", "below/.."])
def test_an_output_that_would_mix_with_something_else_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError):
        require_path(name, ["base", "org/finetuned"])


@pytest.mark.parametrize("name", ["a" * 300, "nul\0", "loop/out"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="cannot be the name of an output"):
        require_path(tmp_path / name, [])


def test_the_place_is_where_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert require_path(tmp_path / "link/out", []) == (tmp_path / "disk/out").resolve()


@pytest.mark.parametrize(
    ("finetuned", "name"),
    [
        ("models/asr", "asr"),
        ("models/asr/", "asr"),
        ("models/asr.v2", "asr.v2"),
        ("asr.safetensors", "asr"),
        ("models/dev-best.ckpt", "dev-best"),
        ("org/asr", "asr"),
        ("org/asr@main", "asr"),
        ("org/asr:sub/dev-best.ckpt", "dev-best"),
        (".", "here"),
        ("/", "model"),
    ],
)
def test_an_output_is_named_after_the_fine_tune_and_the_alpha(
    finetuned: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("asr", "asr.v2"):
        (tmp_path / "here/models" / folder).mkdir(parents=True)
    for file in ("asr.safetensors", "models/dev-best.ckpt"):
        (tmp_path / "here" / file).touch()
    monkeypatch.chdir(tmp_path / "here")
    assert default_name(finetuned, Recipe()) == f"{name}-merged-0.25"
    assert default_name(finetuned, Recipe(alpha=0.5, layer_alpha=(parse_rule("cnn=0"),))) == f"{name}-merged-layerwise"


def test_an_output_far_larger_than_its_inputs_must_be_asked_for(tmp_path: Path) -> None:
    """A pickle of a few bytes may hold views of any size."""
    state = {f"encoder.layers.{i}.a.weight": torch.ones(1).mul(i + 1).expand(1024, 1024) for i in range(4)}
    for name, factor in (("base", 1.0), ("tuned", 1.5)):
        moved = {key: values[:1, :1].mul(factor).expand(1024, 1024) for key, values in state.items()}
        torch.save(moved, tmp_path / f"{name}.pt")
    pair = tmp_path / "base.pt", tmp_path / "tuned.pt"
    recipe = Recipe(format="safetensors")
    with pytest.raises(OutputError, match=r"its inputs have .*--max-output 167"):
        merge(*pair, tmp_path / "out", recipe, options=UNSYNCED)
    assert not (tmp_path / "out").exists()
    made = merge(*pair, tmp_path / "out", recipe, options=replace(UNSYNCED, max_output=20_000_000))
    assert made.manifest.counts["interpolated"] == 4
    with pytest.raises(OutputError, match="at most 1,000 are allowed"):
        merge(*pair, tmp_path / "out2", recipe, options=replace(UNSYNCED, max_output=1000))


def test_an_output_of_its_usual_size_need_not_be_asked_for() -> None:
    require_modest(100, 1, None)
    for size, inputs, most in ((101, 1, None), (11, 10, 10)):
        with pytest.raises(OutputError):
            require_modest(size, inputs, most)
