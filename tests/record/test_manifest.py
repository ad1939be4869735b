"""The manifest: what it tells of a merge, and how a merge is known by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from speechft_merge import __version__

if TYPE_CHECKING:
    from conftest import Pair, Run, Tiny

CANNOT_CREATE = 73
SHARDED = ["--max-shard-size", "50KB"]


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "speechft_merge.json").read_text(encoding="utf-8"))


def test_the_manifest_tells_what_was_merged(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    args = [*pair.args, "-o", "out", "--alpha", "0.3"]
    run(*args)
    manifest, weights = manifest_of(tmp_path / "out"), tiny.read(pair.base)
    assert manifest["speechft_merge"] == __version__
    assert manifest["command"] == args
    assert manifest["recipe"]["alpha"] == pytest.approx(0.3)
    assert manifest["base"]["reference"] == str(pair.base)
    assert manifest["base"]["tensors"] == len(weights)
    assert manifest["base"]["parameters"] == sum(values.size for values in weights.values())
    assert [entry["reference"] for entry in manifest["finetuned"]] == [str(pair.finetuned)]
    assert manifest["counts"] == {
        "interpolated": len(weights), "copied": 0, "taken": 0, "left out": 2, "identical": len(manifest["identical"])
    }  # fmt: skip
    assert manifest["identical"] == sorted(name for name in weights if name.startswith("feature_extractor."))
    assert {entry["tensor"] for entry in manifest["left_out"]} == {"lm_head.weight", "lm_head.bias"}


def test_the_drift_of_a_layer_is_the_distance_of_its_weights(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    base, finetuned = tiny.read(pair.base), tiny.read(pair.finetuned)
    rows = {
        row["part"] if row["layer"] is None else row["layer"]: row for row in manifest_of(tmp_path / "out")["layers"]
    }
    for layer in (0, 1):
        names = [name for name in base if name.startswith(f"encoder.layers.{layer}.")]
        mine = np.concatenate([base[name].astype(np.float64).ravel() for name in names])
        other = np.concatenate([finetuned[f"hubert.{name}"].astype(np.float64).ravel() for name in names])
        assert rows[layer]["drift"] == pytest.approx(np.linalg.norm(other - mine) / np.linalg.norm(mine), rel=1e-5)
    assert rows["cnn"]["drift"] == 0


def test_its_recipe_makes_the_same_merge_again(pair: Pair, run: Run, tmp_path: Path) -> None:
    options = ["--alpha", "0.3", "--layer-alpha", "layers=0.1:0.5", "--layer-alpha", "cnn=-0.2", "--dtype", "float16"]
    assert run(*pair.args, "-o", "out", *options, "--extrapolate", "--keep-head").code == 0
    ran = run(*pair.args, "-o", "again", "--recipe", "out/speechft_merge.json")
    assert ran.code == 0, ran.err
    first, second = manifest_of(tmp_path / "out"), manifest_of(tmp_path / "again")
    assert first["merge_id"] == second["merge_id"]
    assert first["recipe"] == second["recipe"]
    assert first["outputs"] == second["outputs"]


@pytest.mark.parametrize(
    "options",
    [["--alpha", "0.26"], ["--layer-alpha", "cnn=0.5"], ["--keep-head"], ["--dtype", "float16"], SHARDED],
    ids=" ".join,
)
def test_other_recipes_have_other_identities(options: list[str], pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    run(*pair.args, "-o", "other", *options)
    assert manifest_of(tmp_path / "out")["merge_id"] != manifest_of(tmp_path / "other")["merge_id"]


def test_the_identity_is_of_the_content_not_of_names(pair: Pair, copied: list[str], run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out", "--workers", 1)
    run("base/model.safetensors", "finetuned/", "-o", "other", "--workers", 2, "-v")
    assert manifest_of(tmp_path / "out")["merge_id"] == manifest_of(tmp_path / "other")["merge_id"]
