"""`inspect`: what it tells of one checkpoint and of a match, for people and as JSON."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair, Run, Snapshot, Tiny


def test_one_model_is_summarised(pair: Pair, spawn: Run) -> None:
    ran = spawn("inspect", pair.base)
    assert (ran.code, ran.err) == (0, "")
    assert [
        word for word in (str(pair.base), "safetensors", "hubert", "48 tensors", "float32") if word not in ran.out
    ] == []


def test_the_task_prefix_is_told(pair: Pair, run: Run) -> None:
    assert "under the prefix 'hubert.'" in run("inspect", pair.finetuned).out


def test_json_has_every_tensor_with_its_place(pair: Pair, tiny: Tiny, run: Run) -> None:
    ran = run("inspect", pair.base, "--json")
    assert (ran.code, ran.err) == (0, "")
    document, weights = ran.json, tiny.read(pair.base)
    assert document["reference"] == str(pair.base)
    assert document["container"] == "safetensors"
    assert document["model_type"] == "hubert"
    assert document["dtypes"] == {"float32": len(weights)}
    assert document["parameters"] == sum(values.size for values in weights.values())
    assert document["metadata"] == {"format": "pt"}
    assert document["tensors"].keys() == weights.keys()
    content = (pair.base / "model.safetensors").read_bytes()
    assert document["files"] == [{"file": str(pair.base / "model.safetensors"), "size": len(content)}]
    for name, entry in document["tensors"].items():
        assert entry["shape"] == list(weights[name].shape)
        assert content[entry["offset"] :].startswith(weights[name].tobytes())


def test_verbose_lists_every_tensor(pair: Pair, tiny: Tiny, run: Run) -> None:
    weights = tiny.read(pair.finetuned)
    plain, verbose = run("inspect", pair.finetuned), run("inspect", "-v", pair.finetuned)
    assert (verbose.code, verbose.err) == (0, "")
    assert [name for name in weights if name not in verbose.out] == []
    assert "lm_head.weight" not in plain.out
    assert next(line for line in verbose.lines if line.startswith("lm_head.weight")).split()[-1] == "head"


def test_a_match_is_told_layer_by_layer(pair: Pair, run: Run) -> None:
    ran = run("inspect", pair.base, pair.finetuned)
    assert (ran.code, ran.err) == (0, "")
    assert "48 interpolated, 2 left out" in ran.out
    assert "100.0% of the base's parameters" in ran.out
    assert "base '*' is fine-tuned 'hubert.*'" in ran.out


def test_a_match_as_json_has_every_tensor(pair: Pair, tiny: Tiny, run: Run) -> None:
    document = run("inspect", pair.base, pair.finetuned, "--json").json
    assert document["prefixes"] == [{"base": "", "finetuned": "hubert."}]
    assert document["coverage"] == 1
    assert document["tensors"].keys() == tiny.read(pair.base).keys()
    assert {entry["tensor"] for entry in document["left_out"]} == {"lm_head.weight", "lm_head.bias"}
    entry = document["tensors"]["encoder.layers.1.attention.k_proj.weight"]
    assert (entry["action"], entry["part"], entry["layer"]) == ("interpolated", "layers", 1)
    assert entry["finetuned"] == ["hubert.encoder.layers.1.attention.k_proj.weight"]


def test_a_match_says_verbosely_what_becomes_of_each_tensor(pair: Pair, tiny: Tiny, run: Run) -> None:
    ran = run("inspect", pair.base, pair.finetuned, "-v")
    assert [name for name in tiny.read(pair.finetuned) if name.removeprefix("hubert.") not in ran.out] == []
    assert "names: base '*' is fine-tuned 'hubert.*'" in ran.out
    assert "other name" not in ran.out
    assert "left out: the fine-tune's head" in ran.out


def test_a_match_names_what_has_another_name_in_the_fine_tune(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    base = tiny.weights()
    other = {"original0": "weight_g", "original1": "weight_v"}
    named = {
        re.sub(r"parametrizations\.weight\.(original[01])$", lambda found: other[found[1]], k): base[k] for k in base
    }
    inputs = [tiny.write(tmp_path / "base", base), tiny.write(tmp_path / "other", named)]
    lines = run("inspect", *inputs, "-v").out.splitlines()
    told = [line.split() for line in lines if "original" in line]
    assert {(words[0].rpartition(".")[2], words[-1].rpartition("conv.")[2]) for words in told} == {*other.items()}
    assert any("other name in the fine-tune" in line for line in lines)


def test_several_finetuned_models_are_matched_at_once(pair: Pair, run: Run) -> None:
    document = run("inspect", pair.base, pair.finetuned, pair.base, "--json").json
    assert [prefix["finetuned"] for prefix in document["prefixes"]] == ["hubert.", ""]


@pytest.mark.parametrize("words", [[], ["-q"], ["--json"]])
def test_looking_writes_nothing(words: list[str], pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot) -> None:
    assert run("inspect", *pair.args, *words).code == 0
    assert snapshot(tmp_path) == {}


def test_quiet_prints_nothing(pair: Pair, run: Run) -> None:
    ran = run("inspect", "-q", pair.base)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_weights_are_not_read(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    """The header describes a terabyte; the file has it as a hole."""
    entry = {"dtype": "F32", "shape": [1 << 19, 1 << 19], "data_offsets": [0, 1 << 40]}
    header = json.dumps({"encoder.weight": entry}).encode()
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(file.tell() + (1 << 40))
        except OSError:
            pytest.skip("the file system has no files of this size")
    ran = run("inspect", "huge.safetensors", "--json")
    assert ran.code == 0
    assert ran.json["parameters"] == 1 << 38


@pytest.mark.parametrize("words", [[], ["-v"], ["--json"]])
def test_what_a_file_says_cannot_steer_the_terminal(words: list[str], tiny: Tiny, run: Run, tmp_path: Path) -> None:
    odd = "\x1b]0;title\x07\x9b2J\r\n\u202e"
    weights = {f"name{odd}": np.ones(3, np.float32), **tiny.weights()}
    folder = tiny.write(tmp_path / "model", weights, {"model_type": f"type{odd}"})
    save_file(weights, folder / "model.safetensors", metadata={f"key{odd}": f"value{odd}"})
    ran = run("inspect", "model", *words)
    assert (ran.code, ran.err) == (0, "")
    assert not set("\x1b\x07\x9b\r\u202e") & set(ran.out)
    if words == ["--json"]:
        assert f"name{odd}" in ran.json["tensors"]
        assert ran.json["metadata"] == {f"key{odd}": f"value{odd}"}
    else:
        assert "value\\x1b]0;title\\x07\\x9b2J\\r\\n\\u202e" in ran.out


def test_a_hostile_pickle_is_described_and_not_run(run: Run, tmp_path: Path) -> None:
    evil = f"cos\nmkdir\n(V{tmp_path / 'ran'}\ntR."
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", evil)
    ran = run("inspect", "pytorch_model.bin")
    assert ran.code == 65
    assert "os.mkdir" in ran.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("words", "code"), [(["./missing"], 66), ([], 2), (["--alpha", "1", "x"], 2)])
def test_errors_have_the_codes_of_merge(words: list[str], code: int, run: Run) -> None:
    ran = run("inspect", *words)
    assert (ran.code, ran.out) == (code, "")
    assert "Traceback" not in ran.err


def test_weights_that_were_not_opened_are_listed(pair: Pair, run: Run, tmp_path: Path) -> None:
    """Whisper's repositories have several precisions, and an index of a name of its own."""
    shutil.copytree(pair.base, tmp_path / "model")
    others = ["model.fp32-00001-of-00002.safetensors", "model.safetensors.index.fp32.json", "pytorch_model.bin"]
    for name in (*others, "training_args.bin", "tf_model.h5"):
        (tmp_path / "model" / name).write_bytes(b"")
    assert run("inspect", "model", "--json").json["other_weights"] == others[1:]
    ran = run("inspect", "model")
    assert "model.safetensors.index.fp32.json, pytorch_model.bin (not opened; name one to open it)" in ran.out
    assert "other weights" not in run("inspect", pair.base).out
