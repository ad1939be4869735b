"""A verification makes a merge again: it finds any byte that differs, and says where and by how much."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lab_files import plain, s3prl_base, s3prl_finetune
from lab_models import Lab
from lab_pairs import pair as lab_pair
from lab_pairs import save
from options import UNSYNCED
from safetensors.numpy import load_file, save_file

from speechft_merge import MergeOptions, Recipe, SpeechFTMergeError, Verification, merge, verify
from speechft_merge.errors import NotFoundError

if TYPE_CHECKING:
    from conftest import Pair, Run, Snapshot, Tiny

HUBERT = Lab("hubert")
NOT_WHAT_IT_MAKES = 65
GONE = 66


@pytest.fixture
def output(pair: Pair, tmp_path: Path) -> Path:
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    return tmp_path / "out"


def told(found: Verification) -> list[str]:
    return [str(difference) for difference in found.differences]


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(alpha=0.7, keep_head=True), Recipe(dtype="float16"), Recipe(alpha=-0.5, extrapolate=True)],
)
@pytest.mark.parametrize("size", [None, 20_000])
def test_every_merge_is_verified_and_left_alone(
    recipe: Recipe, size: int | None, pair: Pair, tmp_path: Path, snapshot: Snapshot
) -> None:
    merge(*pair.args, tmp_path / "out", recipe, options=MergeOptions(fsync=False, max_shard_size=size))
    before = snapshot(tmp_path)
    for quick in (False, True):
        found = verify(tmp_path / "out", quick=quick)
        assert found.differences == ()
        assert {"config.json"} < {*found.files}
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("container", [s3prl_base, plain])
def test_the_file_of_a_lab_is_verified_with_the_checksums_of_its_zip(container: Any, tmp_path: Path) -> None:
    base, finetuned = lab_pair(HUBERT)
    ours = save(container(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    assert told(verify(tmp_path / "out")) == []
    (file,) = (tmp_path / "out").glob("merged_model*")
    content = bytearray(file.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 16  # the CRC of the last record in the directory
    content[place] ^= 1
    file.write_bytes(content)
    assert len(told(verify(tmp_path / "out"))) == 1


@pytest.mark.parametrize("place", [0, 9, 100, -1, -3000])
def test_a_flipped_bit_is_found_wherever_it_is(place: int, output: Path) -> None:
    file = output / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    for quick in (False, True):
        assert len(verify(output, quick=quick).differences) == 1


def test_the_tensors_that_differ_are_named_in_order_with_how_much(output: Path, tiny: Tiny) -> None:
    weights = tiny.read(output)
    spoiled = sorted(name for name, values in weights.items() if values.ndim == 2)[:3]
    for name in spoiled:
        weights[name][0, :2] += [0.25, -0.5]
    raw = (output / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    content, start = bytearray(raw), 8 + int.from_bytes(raw[:8], "little")
    for name in spoiled:
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        content[begin:end] = weights[name].tobytes()
    (output / "model.safetensors").write_bytes(content)
    found = verify(output).differences
    places = [header[difference.tensor]["data_offsets"][0] for difference in found]
    assert places == sorted(places)
    assert {difference.tensor for difference in found} == {*spoiled}
    assert {difference.elements for difference in found} == {2}
    assert all(abs(difference.largest - 0.5) < 1e-3 for difference in found if difference.largest is not None)


def test_missing_cut_and_grown_files_are_told(pair: Pair, tmp_path: Path) -> None:
    merge(*pair.args, tmp_path / "out", options=MergeOptions(fsync=False, max_shard_size=20_000))
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].write_bytes(shards[2].read_bytes() + b"x")
    (tmp_path / "out/config.json").write_text("{}")
    found = verify(tmp_path / "out")
    assert [difference.file for difference in found.differences] == [*(path.name for path in shards[:3]), "config.json"]
    assert "missing" in told(found)[0]
    assert all("bytes instead of" in line for line in told(found)[1:3])
    quick = verify(tmp_path / "out", quick=True)
    assert [one.file for one in quick.differences] == [one.file for one in found.differences]


def test_a_checksum_alone_does_not_tell_a_merge_that_was_made_wrong(output: Path, tiny: Tiny) -> None:
    """As by a broken memory: the checksum was made of the wrong bytes. Only a replay tells."""
    from speechft_merge.output.checksums import checksum_of

    weights = tiny.read(output)
    name = next(name for name, values in weights.items() if values.ndim == 2)
    file = output / "model.safetensors"
    content = file.read_bytes()
    at = content.index(weights[name].tobytes())
    file.write_bytes(content[:at] + (weights[name] + 1).tobytes() + content[at + weights[name].nbytes :])
    record = json.loads((output / "speechft_merge.json").read_text())
    record["outputs"][0]["xxh128"] = checksum_of(file)
    (output / "speechft_merge.json").write_text(json.dumps(record))
    assert told(verify(output, quick=True)) == []
    assert [difference.tensor for difference in verify(output).differences] == [name]


def test_models_that_moved_are_given_and_those_that_changed_are_refused(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    base = tiny.weights()
    pair = tiny.write_pair(tmp_path, base, tiny.ctc(tiny.finetuned(base)))
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    moved = [shutil.copytree(path, tmp_path / f"moved{i}") for i, path in enumerate(pair.args)]
    shutil.rmtree(pair.finetuned)
    gone = run("verify", "out")
    assert gone.code == GONE
    assert run("verify", "out", *moved).code == 0
    assert run("verify", "out", moved[0]).code == 2
    weights = load_file(moved[1] / "model.safetensors")
    save_file({name: values + 1 for name, values in weights.items()}, moved[1] / "model.safetensors")
    changed = run("verify", "out", *moved)
    assert changed.code == NOT_WHAT_IT_MAKES
    assert "is not what was merged" in changed.err


def test_the_command_prints_one_document_and_its_exit_code_says_whether_all_is_well(output: Path, run: Run) -> None:
    assert run("verify", "out", "--json").json == {
        "output": "out", "verified": True, "quick": False, "differences": [],
        "files": ["model.safetensors", "config.json", "preprocessor_config.json"],
    }  # fmt: skip
    with (output / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    spoiled = run("verify", "out", "--json")
    assert spoiled.code == NOT_WHAT_IT_MAKES
    (difference,) = spoiled.json["differences"]
    assert difference["elements"] == 1
    assert difference["tensor"] in run("verify", "out").out
    assert run("verify", "out", "--quick", "--workers", "2").code == 2


def test_what_is_no_output_is_not_found(tmp_path: Path, run: Run, output: Path) -> None:
    for folder in ("nowhere", "."):
        assert run("verify", folder).code == GONE
    record = json.loads((output / "speechft_merge.json").read_text())
    (output / "speechft_merge.json").write_text(json.dumps({**record, "outputs": [{"file": "x", "size": 1}]}))
    refused = run("verify", "out")
    assert refused.code == GONE
    assert "merged again" in refused.err


def test_a_merge_verifies_itself_when_asked(pair: Pair, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    assert run(*pair.args, "-o", "good", "--verify", "-q").out.split() == ["good"]
    real = np.add
    once = iter([True])

    def add(*args: Any, **named: Any) -> Any:
        made = real(*args, **named)
        if next(once, False):
            made[:1] += 1
        return made

    monkeypatch.setattr(np, "add", add)
    bad = run(*pair.args, "-o", "bad", "--verify")
    assert bad.code == NOT_WHAT_IT_MAKES
    assert "was written, but it is not what the merge makes" in bad.err


def test_an_edited_card_is_no_difference(output: Path) -> None:
    (output / "README.md").write_text("my notes")
    assert verify(output).differences == ()


def test_an_output_of_unrelated_models_that_was_allowed_is_verified(tiny: Tiny, tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path, tiny.weights(), tiny.ctc(tiny.weights(seed=5)))
    options = MergeOptions(fsync=False, allow_unrelated=True)
    merge(*pair.args, tmp_path / "out", options=options)
    assert verify(tmp_path / "out").differences == ()
    with pytest.raises(SpeechFTMergeError):
        merge(*pair.args, tmp_path / "other", options=UNSYNCED)


# What may be wrong with an output that somebody else made.


@pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
def test_a_small_file_that_is_none_is_neither_waited_for_nor_read(kind: str, output: Path) -> None:
    path = output / "config.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    for quick in (False, True):
        assert [difference.file for difference in verify(output, quick=quick).differences] == ["config.json"]


def test_models_in_another_order_are_not_what_was_merged(output: Path, pair: Pair, run: Run) -> None:
    wrong = run("verify", "out", pair.finetuned, pair.base)
    assert wrong.code == NOT_WHAT_IT_MAKES
    assert "speechft-merge verify OUTPUT BASE FINETUNED" in wrong.err
    assert run("verify", "out", *pair.args, "--quick").code == 2


def test_a_path_that_is_gone_is_not_asked_of_the_hub(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    """`models/base` could be a repository's name, and a stranger's repository."""
    base = tiny.weights()
    tiny.write_pair(tmp_path / "models", base, tiny.ctc(tiny.finetuned(base)))
    assert run("models/base", "models/finetuned", "-o", "out").code == 0
    (tmp_path / "elsewhere").mkdir()
    gone = run("verify", "../out", cwd=tmp_path / "elsewhere")
    assert gone.code == GONE
    assert "models/base, which was merged, is not there" in gone.err
    assert run("verify", "../out", "../models/base", "../models/finetuned", cwd=tmp_path / "elsewhere").code == 0


def test_a_record_that_is_not_this_merge_s_is_told(output: Path) -> None:
    path = output / "speechft_merge.json"
    whole = json.loads(path.read_text())
    spoiled: Any = {"merge_id": "0" * 64, "outputs": [{**whole["outputs"][0], "xxh128": "00"}]}
    for key, value in spoiled.items():
        path.write_text(json.dumps(whole | {key: value}))
        assert len(verify(output).differences) == 1
    path.write_text(json.dumps(whole | {"format": 99}))
    with pytest.raises(NotFoundError, match="merged again"):
        verify(output)


@pytest.mark.parametrize(
    "damage", [{"max_shard_size": 0}, {"recipe": {"alpha": "x"}}, {"recipe": {"foo": 1}}, {"recipe": {"weight": [1.0]}}]
)
def test_a_damaged_record_is_told_as_such(damage: dict[str, Any], output: Path, run: Run) -> None:
    path = output / "speechft_merge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    refused = run("verify", "out")
    assert refused.code == NOT_WHAT_IT_MAKES
    assert "out" in refused.err


def test_a_number_that_is_not_finite_hides_no_other_difference(output: Path, tiny: Tiny) -> None:
    weights = tiny.read(output)
    name = next(name for name, values in weights.items() if values.ndim == 2)
    spoiled = weights[name].copy()
    spoiled[0, :2] = [np.nan, spoiled[0, 1] + 0.5]
    content = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").write_bytes(content.replace(weights[name].tobytes(), spoiled.tobytes()))
    (difference,) = verify(output).differences
    assert difference.elements == 2
    assert difference.largest == pytest.approx(0.5)
