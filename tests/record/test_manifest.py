"""The manifest: what it proves, and what becomes of an output that is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from speechft_merge import __version__

if TYPE_CHECKING:
    from conftest import Pair, Run, Snapshot, Tiny

CANNOT_CREATE = 73
SHARDED = ["--max-shard-size", "50KB"]


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "speechft_merge.json").read_text(encoding="utf-8"))


@pytest.fixture
def copied(pair: Pair, tmp_path: Path) -> list[str]:
    """The usual pair where a test may change it."""
    for folder in (pair.base, pair.finetuned):
        shutil.copytree(folder, tmp_path / folder.name)
    return ["base", "finetuned"]


def times_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [folder, *folder.iterdir()]}


# What it tells.


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
    assert run(*pair.args, "-o", "out", *options, "--extrapolate", "--keep-head", "--weight", "2").code == 0
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


# An output that is there.


@pytest.mark.parametrize("shards", [[], SHARDED], ids=["single", "sharded"])
@pytest.mark.parametrize("again", [[], ["--overwrite"], ["--workers", "1"], ["-v", "--no-fsync"]], ids=" ".join)
def test_a_finished_merge_is_not_done_again(
    shards: list[str], again: list[str], pair: Pair, run: Run, tmp_path: Path
) -> None:
    run(*pair.args, "-o", "out", *shards)
    before = times_of(tmp_path / "out")
    ran = run(*pair.args, "-o", "out", *shards, *again)
    assert ran.code == 0
    assert "already done" in ran.out
    assert ran.lines[-1] == "out"
    assert times_of(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


TAMPERED: list[Any] = [
    pytest.param([], "model.safetensors", flip_a_byte, id="weights-changed"),
    pytest.param([], "model.safetensors", cut, id="weights-cut"),
    pytest.param([], "model.safetensors", Path.unlink, id="weights-gone"),
    pytest.param([], "config.json", Path.unlink, id="config-gone"),
    pytest.param([], "config.json", flip_a_byte, id="config-changed"),
    pytest.param(SHARDED, "model-00002-of-00003.safetensors", flip_a_byte, id="shard-changed"),
    pytest.param(SHARDED, "model-00002-of-00003.safetensors", Path.unlink, id="shard-gone"),
    pytest.param(SHARDED, "model.safetensors.index.json", Path.unlink, id="index-gone"),
    pytest.param(SHARDED, "model.safetensors.index.json", flip_a_byte, id="index-changed"),
]


@pytest.mark.parametrize(("options", "name", "tamper"), TAMPERED)
def test_an_output_that_is_not_whole_is_not_taken_for_done(
    options: list[str], name: str, tamper: Callable[[Path], None], pair: Pair, run: Run, tmp_path: Path,
    snapshot: Snapshot,
) -> None:  # fmt: skip
    run(*pair.args, "-o", "out", *options)
    whole = snapshot(tmp_path)
    tamper(tmp_path / "out" / name)
    tampered = snapshot(tmp_path)
    ran = run(*pair.args, "-o", "out", *options)
    assert (ran.code, ran.out) == (CANNOT_CREATE, "")
    assert "--overwrite" in ran.err
    assert snapshot(tmp_path) == tampered
    assert run(*pair.args, "-o", "out", *options, "--overwrite").code == 0
    mended = snapshot(tmp_path)
    assert {k: v for k, v in mended.items() if k.endswith(("safetensors", "json")) and "merge.json" not in k} == {
        k: v for k, v in whole.items() if k.endswith(("safetensors", "json")) and "merge.json" not in k
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"merge_id": 1}', "null", "\udcff"], ids=range(7))
def test_an_output_with_a_broken_manifest_is_refused(text: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    (tmp_path / "out/speechft_merge.json").write_bytes(text.encode(errors="surrogateescape"))
    ran = run(*pair.args, "-o", "out")
    assert ran.code == CANNOT_CREATE, ran.err
    assert "out" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("outputs", [["x"], [None], {"a": 1}, [{}], [{"file": "../../base"}]], ids=str)
def test_a_manifest_may_say_anything(outputs: object, pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    manifest = manifest_of(tmp_path / "out") | {"outputs": outputs}
    (tmp_path / "out/speechft_merge.json").write_text(json.dumps(manifest))
    ran = run(*pair.args, "-o", "out")
    assert ran.code == CANNOT_CREATE, ran.err
    assert "Traceback" not in ran.err


def change_base(folder: Path, tiny: Tiny) -> None:
    weights = tiny.read(folder / "base")
    weights["encoder.layers.0.attention.k_proj.bias"][3] += 1
    tiny.write(folder / "base", weights)


def change_finetuned(folder: Path, tiny: Tiny) -> None:
    tiny.write(folder / "finetuned", tiny.ctc(tiny.finetuned(tiny.weights(), seed=5)))


def change_config(folder: Path, tiny: Tiny) -> None:
    (folder / "base/config.json").write_text('{"model_type": "wavlm"}')


def change_nothing(folder: Path, tiny: Tiny) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (change_base, []),
        (change_finetuned, []),
        (change_config, []),
        (change_nothing, ["--alpha", "0.5"]),
        (change_nothing, ["--dtype", "float16"]),
        (change_nothing, SHARDED),
    ],
)
def test_the_output_of_another_merge_is_replaced_only_by_overwrite(
    change: Callable[[Path, Tiny], None], options: list[str], copied: list[str], tiny: Tiny, run: Run, tmp_path: Path,
    snapshot: Snapshot,
) -> None:  # fmt: skip
    run(*copied, "-o", "out")
    change(tmp_path, tiny)
    before = snapshot(tmp_path)
    ran = run(*copied, "-o", "out", *options)
    assert (ran.code, ran.out) == (CANNOT_CREATE, "")
    assert "--overwrite" in ran.err
    assert snapshot(tmp_path) == before
    assert run(*copied, "-o", "out", *options, "--overwrite").code == 0
    assert run(*copied, "-o", "fresh", *options).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned", "out", "fresh"}
    replaced, fresh = snapshot(tmp_path / "out"), snapshot(tmp_path / "fresh")
    assert replaced.keys() == fresh.keys()
    assert {n: c for n, c in replaced.items() if not n.endswith(("merge.json", ".md"))} == {
        n: c for n, c in fresh.items() if not n.endswith(("merge.json", ".md"))
    }


def test_nothing_of_a_replaced_output_stays(copied: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "finetuned/vocab.json").write_text("{}")
    run(*copied, "-o", "out", "--keep-head", *SHARDED)
    assert (tmp_path / "out/vocab.json").is_file()
    assert run(*copied, "-o", "out", "--overwrite").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "speechft_merge.json"}


def test_a_file_of_the_user_s_in_an_output_is_never_lost(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    (tmp_path / "out/notes.txt").write_text("years of work")
    (tmp_path / "out/runs").mkdir()
    for options in ([], ["--overwrite"]):
        ran = run(*pair.args, "-o", "out", "--alpha", "0.5", *options)
        assert ran.code == CANNOT_CREATE
        assert "notes.txt" in ran.err
    assert (tmp_path / "out/notes.txt").read_text() == "years of work"
    assert (tmp_path / "out/runs").is_dir()
