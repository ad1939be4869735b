"""What stands in the output directory: weights, companions and their permissions."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from speechft_merge.output.checksums import checksum_of

if TYPE_CHECKING:
    from conftest import Pair, Run, Snapshot, Tiny

FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "speechft_merge.json"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# The set of files.


def test_the_output_is_this_set_of_files_and_nothing_stands_beside_it(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == FILES


def test_a_sharded_output_has_an_index_instead_of_the_single_file(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out", "--max-shard-size", "50KB")
    there = names_in(tmp_path / "out") - FILES
    shards = sorted(there - {"model.safetensors.index.json"})
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 1
    index = read_json(tmp_path / "out/model.safetensors.index.json")
    assert set(index["weight_map"].values()) == set(shards)
    sizes = 0
    for shard in shards:
        with safe_open(tmp_path / "out" / shard, "numpy") as file:
            here = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
            assert {name for name, place in index["weight_map"].items() if place == shard} == set(file.keys())
        assert len(here) == 1 or sum(values.nbytes for values in here) <= 50_000
        sizes += sum(values.nbytes for values in here)
    assert index["metadata"]["total_size"] == sizes


def test_shards_hold_the_same_numbers_as_a_single_file(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "one")
    run(*pair.args, "-o", "many", "--max-shard-size", "20KB")
    one, many = tiny.read(tmp_path / "one"), tiny.read(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(values.tobytes() == many[name].tobytes() for name, values in one.items())


def test_the_safetensors_library_reads_the_weights_with_the_mark_that_transformers_wants(
    pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    run(*pair.args, "-o", "out")
    with safe_open(tmp_path / "out/model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tiny.read(pair.base))


@pytest.mark.parametrize("option", [["-o", "out"], ["--output=out"], []], ids=["short", "long", "default"])
def test_the_output_can_be_merged_again(option: list[str], pair: Pair, run: Run, tmp_path: Path) -> None:
    first = run(*pair.args, "-q", *option).out.strip()
    ran = run(first, pair.finetuned, "-q", "-o", "again")
    assert (ran.code, ran.err) == (0, "")
    assert names_in(tmp_path / "again") == FILES


@pytest.mark.parametrize("where", ["given", "a/b/c", "../given", "given/"])
def test_the_output_may_be_an_empty_directory_or_a_new_one(where: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    (tmp_path / "cwd/given").mkdir(parents=True)
    ran = run(*pair.args, "-q", "-o", where, cwd=tmp_path / "cwd")
    assert (ran.code, ran.out, ran.err) == (0, f"{where.rstrip('/')}\n", "")
    assert names_in(tmp_path / "cwd" / where) == FILES
    assert not list(tmp_path.rglob(".*"))


def test_the_current_directory_is_filled_or_refused(pair: Pair, run: Run, tmp_path: Path) -> None:
    ran = run(*pair.args, "-q", "-o", ".")
    assert "Traceback" not in ran.err
    assert (ran.code, names_in(tmp_path)) in [(0, FILES), (2, set()), (73, set())]


def test_a_link_to_a_directory_goes_on_leading_there(pair: Pair, run: Run, tmp_path: Path) -> None:
    """Home is small and scratch is large: the weights belong where the link leads."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch")
    for alpha in ("0.25", "0.5"):
        assert run(*pair.args, "-o", "link", "--overwrite", "--alpha", alpha).code == 0
        assert (tmp_path / "link").is_symlink()
        assert names_in(tmp_path / "scratch") == FILES
        assert names_in(tmp_path) == {"link", "scratch"}


# Permissions.


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
@pytest.mark.parametrize("shards", [[], ["--max-shard-size", "80KB"]], ids=["single", "sharded"])
def test_permissions_are_those_of_the_umask(
    umask: int, shards: list[str], pair: Pair, spawn: Run, tmp_path: Path
) -> None:
    assert spawn(*pair.args, "-o", "out", *shards, umask=umask).code == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


# Companions.


def test_companions_are_the_base_s_byte_for_byte(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (pair.base / name).read_bytes()


def test_the_feature_extractor_comes_from_the_other_side_where_the_owner_lacks_it(
    pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    run(*pair.args, "-o", "kept", "--keep-head")  # here only the base has one
    settings = {"sampling_rate": 8000}
    base = tiny.write(tmp_path / "base", tiny.read(pair.base), {"model_type": "hubert"})
    finetuned = tiny.write(tmp_path / "fine", tiny.read(pair.finetuned), None, preprocessor_config=settings)
    run(base, finetuned, "-o", "out")
    assert read_json(tmp_path / "kept/preprocessor_config.json") == read_json(pair.base / "preprocessor_config.json")
    assert read_json(tmp_path / "out/preprocessor_config.json") == settings


def test_where_both_have_a_feature_extractor_the_owner_s_is_taken(
    pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    models = {
        side: tiny.read(folder) for side, folder in zip(("base", "fine"), (pair.base, pair.finetuned), strict=True)
    }
    for side, weights in models.items():
        tiny.write(tmp_path / side, weights, preprocessor_config={"side": side})
    run("base", "fine", "-o", "out")
    run("base", "fine", "-o", "kept", "--keep-head")
    assert read_json(tmp_path / "out/preprocessor_config.json") == {"side": "base"}
    assert read_json(tmp_path / "kept/preprocessor_config.json") == {"side": "fine"}


@pytest.mark.parametrize(("options", "side"), [([], "base"), (["--keep-head"], "fine")])
@pytest.mark.parametrize("holders", [("base", "fine"), ("base",), ("fine",)], ids=" and ".join)
def test_tokenizers_come_only_from_the_side_whose_class_is_written(
    options: list[str], side: str, holders: tuple[str, ...], pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    for name, folder in (("base", pair.base), ("fine", pair.finetuned)):
        files = {"vocab": {name: 0}, "tokenizer_config": {"from": name}} if name in holders else {}
        tiny.write(tmp_path / name, tiny.read(folder), **files)
    assert run("base", "fine", "-o", "out", *options).code == 0
    if side in holders:
        assert read_json(tmp_path / "out/vocab.json") == {side: 0}
        assert read_json(tmp_path / "out/tokenizer_config.json") == {"from": side}
    else:
        assert not {"vocab.json", "tokenizer_config.json"} & names_in(tmp_path / "out")


def test_other_files_are_not_copied(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    base = tiny.write(tmp_path / "base", tiny.read(pair.base), {"model_type": "hubert"})
    for name in ("README.md", "training_args.bin", "secret.env", ".gitattributes", "config.json.bak"):
        (base / name).write_text("the base's")
    run(base, pair.finetuned, "-o", "out")
    assert names_in(tmp_path / "out") == FILES - {"preprocessor_config.json"}
    assert "the base's" not in (tmp_path / "out/README.md").read_text().splitlines()


@pytest.mark.parametrize(
    ("before", "option", "after"),
    [
        ({"dtype": "float32"}, "float16", {"dtype": "float16"}),
        ({"torch_dtype": "float32"}, "bfloat16", {"torch_dtype": "bfloat16"}),
        ({}, "float16", {"torch_dtype": "float16"}),
        ({}, "keep", {}),
        ({"dtype": "float16"}, "keep", {"dtype": "float32"}),
        ({"dtype": "float32"}, "float32", {"dtype": "float32"}),
    ],
)
def test_the_config_tells_the_type_of_the_weights(
    before: dict[str, str], option: str, after: dict[str, str], pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    rest = {"model_type": "hubert", "name": "größe", "nested": {"dtype": "float64"}}
    base = tiny.write(tmp_path / "base", tiny.read(pair.base), rest | before)
    assert run(base, pair.finetuned, "-o", "out", "--dtype", option).code == 0
    assert read_json(tmp_path / "out/config.json") == rest | after


def test_models_without_a_config_are_merged_without_one(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    save_file(tiny.read(pair.base), tmp_path / "base.safetensors")
    save_file(tiny.read(pair.finetuned), tmp_path / "fine.safetensors")
    (tmp_path / "inputs").mkdir()
    for name in ("base", "fine"):
        (tmp_path / f"{name}.safetensors").rename(tmp_path / f"inputs/{name}.safetensors")
    ran = run("inputs/base.safetensors", "inputs/fine.safetensors", "-o", "out")
    assert ran.code == 0, ran.err
    assert names_in(tmp_path / "out") == {"README.md", "model.safetensors", "speechft_merge.json"}
    assert "library_name" not in (tmp_path / "out/README.md").read_text()


# The manifest beside them tells the truth; more in test_manifest.


def test_every_weight_file_has_the_size_and_checksum_of_the_manifest(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out", "--max-shard-size", "40KB")
    outputs = read_json(tmp_path / "out/speechft_merge.json")["outputs"]
    assert {entry["file"] for entry in outputs} == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    for entry in outputs:
        path = tmp_path / "out" / entry["file"]
        assert entry["size"] == path.stat().st_size
        assert entry["xxh128"] == checksum_of(path)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("option", ["keep", "float32", "float16", "bfloat16"])
def test_large_tensors_of_every_type_are_recognised_as_done(
    dtype: Any, option: str, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    """The checksum is made of the chunks as they are written, and checked in other ones."""
    base = {"encoder.layers.0.weight": np.linspace(-1, 1, 700_001, dtype=dtype).reshape(1, -1), "id": np.arange(99_999)}
    inputs = [tiny.write(tmp_path / f"{i}", base | {"w": np.full(7, i, np.float32)}) for i in range(2)]
    first, second = (run(*inputs, "-o", "out", "--dtype", option, "--json").json["already_done"] for _ in range(2))
    assert (first, second) == (False, True)


def test_bytes_depend_neither_on_threads_nor_on_the_name_of_the_output(
    tiny: Tiny, spawn: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    base = tiny.weights(hidden=512, layers=1)  # tensors of several chunks
    inputs = tiny.write_pair(tmp_path, base, tiny.ctc(tiny.finetuned(base))).args
    sums = set()
    for threads in (1, 2, 7):
        spawn(*inputs, "-o", f"out{threads}", "--workers", threads)
        sums.add(snapshot(tmp_path / f"out{threads}")["model.safetensors"])
    assert len(sums) == 1


def test_the_time_and_the_place_leave_no_trace_in_the_output(
    pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        run(*pair.args, "-o", "out", cwd=tmp_path / place)
    assert snapshot(tmp_path / "here") == snapshot(tmp_path / "there")


def test_tensors_stand_aligned_in_the_file(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    """Types of different sizes, odd lengths: each tensor starts at a multiple of its element's size."""
    base = tiny.weights()
    base |= {
        "extra.half": np.ones(3, np.float16),
        "extra.byte": np.ones(3, np.uint8),
        "extra.long": np.ones(1, np.int64),
    }
    inputs = [tiny.write(tmp_path / "base", base), tiny.write(tmp_path / "fine", tiny.finetuned(base, noise=0))]
    assert run(*inputs, "-o", "out").code == 0
    document = run("inspect", "out", "--json").json
    sizes = {"float32": 4, "float16": 2, "uint8": 1, "int64": 8}
    assert [n for n, entry in document["tensors"].items() if entry["offset"] % sizes[entry["dtype"]]] == []
    merged = tiny.read(tmp_path / "out")
    assert {name: values.dtype for name, values in merged.items()} == {n: values.dtype for n, values in base.items()}


def test_os_is_told_to_keep_the_output_unless_asked_not_to(pair: Pair, run: Run, tmp_path: Path) -> None:
    assert run(*pair.args, "-o", "out", "--no-fsync").code == 0
    assert names_in(tmp_path / "out") == FILES
    assert os.path.getsize(tmp_path / "out/model.safetensors") > 100_000  # noqa: PTH202
