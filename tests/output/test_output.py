"""An output: when it is finished, what it may replace, and that it appears whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from models import Memory, span_of
from options import UNSYNCED

from speechft_merge import merge
from speechft_merge.checkpoints import DType, TensorSpan
from speechft_merge.errors import OutputError, WriteError
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.executor import Placed, execute
from speechft_merge.merging import open_merge
from speechft_merge.output.files import OutputFile, OutputFiles
from speechft_merge.output.output import Output, require_replaceable
from speechft_merge.output.staging import Staging, remove_temporary
from speechft_merge.plan.operations import Interpolate, Segment, Term

if TYPE_CHECKING:
    from conftest import Pair, Run, Snapshot, Tiny

    from speechft_merge.progress import Count

CANNOT_CREATE = 73
SHARDED = ["--max-shard-size", "50KB"]
IDENTITY = "0123456789abcdef" * 4
DRIFTS = {"weight": Drift(4.0, 1.0, True)}


def file_of(name: str, base: TensorSpan, size: int = 10) -> OutputFile:
    """A header and one number, halfway between 2 and 3."""
    mix = Interpolate(base, (Term(span_of(torch.tensor([3.0])), 1.0, 0),), 0.5)
    return OutputFile(name, b"header", (Segment(6, mix, DType.F32, "weight"),), size)


NOWHERE = TensorSpan(Memory(b""), 0, DType.F32, (1,))
FILE = file_of("model.safetensors", span_of(torch.tensor([2.0])))
ONE_FILE = OutputFiles((FILE,))
MORE = OutputFiles((FILE, OutputFile("other.safetensors", b"another", (), 7)))


def carry_out(segments: Placed, count: Count | None) -> dict[str, Drift]:
    return execute(segments, 1, count)


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "speechft_merge.json").read_text(encoding="utf-8"))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Whole or not at all.


def test_an_output_appears_by_its_commit(tmp_path: Path) -> None:
    with Output(tmp_path / "out", IDENTITY) as output:
        output.begin(ONE_FILE)
        (written,) = output.write_weights(ONE_FILE, carry_out)
        output.put({"config.json": b"{}", "README.md": b""})
        assert not output.path.exists()
        output.commit()
        assert names_in(tmp_path) == {"out"}
    assert {path.name: path.read_bytes() for path in output.path.iterdir()} == {
        "model.safetensors": b"header" + np.float32(2.5).tobytes(), "config.json": b"{}", "README.md": b""
    }  # fmt: skip
    assert (written.entry.file, written.entry.size, written.drifts) == ("model.safetensors", 10, DRIFTS)


@pytest.mark.parametrize("error", [None, ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_without_a_commit_nothing_is_left(error: BaseException | None, tmp_path: Path) -> None:
    def leave() -> None:
        with Output(tmp_path / "new/out", IDENTITY) as output:
            output.begin(ONE_FILE)
            output.write_weights(ONE_FILE, carry_out)
            output.put({"config.json": b"{}"})
            if error is not None:
                raise error

    if error is None:
        leave()
    else:
        with pytest.raises(type(error)) as caught:
            leave()
        assert not hasattr(caught.value, "__notes__")
    assert names_in(tmp_path) == set()


def test_two_files_that_have_one_name_on_this_file_system_are_refused(tmp_path: Path) -> None:
    with Output(tmp_path / "out", IDENTITY) as output:
        output.begin(ONE_FILE)
        output.put({"vocab.json": b"first"})
        with pytest.raises(OutputError, match=r"^vocab\.json would replace .*; choose .* \(-o\)"):
            output.put({"vocab.json": b"second"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_be_kept_is_there_for_the_next_run(tmp_path: Path) -> None:
    made = []

    def make_and_fail(output: Output) -> None:
        output.begin(MORE)
        made.extend(output.write_weights(MORE, carry_out))
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught, Output(tmp_path / "out", IDENTITY) as output:
        make_and_fail(output)
    assert caught.value.__notes__ == ["finished shards are kept; run the same command to go on from there"]
    with Output(tmp_path / "out", IDENTITY) as output:
        output.begin(MORE)
        unreadable = OutputFiles((file_of(FILE.name, NOWHERE), MORE.files[1]))
        assert output.write_weights(unreadable, 1) == made
        output.commit()
    assert names_in(tmp_path) == {"out"}


def test_room_is_wanted_for_what_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = OutputFiles((FILE, file_of("other.safetensors", NOWHERE, 17)))
    with Output(tmp_path / "out", IDENTITY) as output:
        output.begin(more)
        with pytest.raises(AssertionError):
            output.write_weights(more, carry_out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6))
    with pytest.raises(WriteError, match="needs 17 bytes"), Output(tmp_path / "out", IDENTITY) as output:
        output.begin(more)
    with pytest.raises(WriteError, match="needs 27 bytes"), Output(tmp_path / "another", IDENTITY) as output:
        output.begin(more)
    assert len(names_in(tmp_path)) == 1


# What may be replaced.


def test_an_empty_folder_gives_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Output(tmp_path / "out", IDENTITY) as output:
        output.begin(ONE_FILE)
        output.write_weights(ONE_FILE, carry_out)
        output.commit()
    assert names_in(tmp_path / "out") == {FILE.name}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_merge_wrote_stays(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for number in range(7):
        (tmp_path / f"folder/{number}").touch()
    for name, words in (
        ("file", "not a directory"),
        ("link", "not a directory"),
        ("folder", "files that no merge wrote"),
    ):
        with pytest.raises(OutputError, match=words) as caught:
            Output(tmp_path / name, IDENTITY, overwrite=overwrite).begin(ONE_FILE)
    assert caught.value.found == "0, 1, 2, 3, 4, ..."
    assert names_in(tmp_path) == {"file", "link", "folder"}


def test_another_merge_is_replaced_only_if_that_is_asked_for(pair: Pair, tmp_path: Path) -> None:
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    with pytest.raises(OutputError, match="holds another merge") as caught:
        Output(tmp_path / "out", IDENTITY).begin(ONE_FILE)
    assert "--overwrite" in str(caught.value.hint)
    with Output(tmp_path / "out", IDENTITY, overwrite=True) as output:
        output.begin(ONE_FILE)
        output.write_weights(ONE_FILE, carry_out)
        assert (tmp_path / "out/config.json").exists()
        output.commit()
    assert names_in(tmp_path / "out") == {FILE.name}
    assert names_in(tmp_path) == {"out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_may_be_replaced_is_asked_again_at_the_commit(overwrite: bool, tmp_path: Path) -> None:
    with Output(tmp_path / "out", IDENTITY, overwrite=overwrite) as output:
        output.begin(ONE_FILE)
        output.write_weights(ONE_FILE, carry_out)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("years of work")
        with pytest.raises(OutputError, match="files that no merge wrote"):
            output.commit()
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"
    assert names_in(tmp_path) == {"out"}


# What is finished.


def test_only_the_output_of_this_very_merge_is_finished(pair: Pair, tmp_path: Path) -> None:
    made = merge(*pair.args, tmp_path / "out", options=UNSYNCED).manifest
    assert Output(tmp_path / "out", made.merge_id).finished() == made
    assert Output(tmp_path / "out", IDENTITY).finished() is None
    assert Output(tmp_path, made.merge_id).finished() is None
    assert Output(tmp_path / "nowhere", made.merge_id).finished() is None


def test_a_card_that_was_edited_and_a_report_beside_it_leave_an_output_finished(pair: Pair, tmp_path: Path) -> None:
    made = merge(*pair.args, tmp_path / "out", options=UNSYNCED).manifest
    (tmp_path / "out/README.md").write_text("mine")
    (tmp_path / "out/similarity.json").write_text("{}")
    assert Output(tmp_path / "out", made.merge_id).finished() == made
    (tmp_path / "out/README.md").unlink()
    assert Output(tmp_path / "out", made.merge_id).finished() == made


def test_once_the_output_is_found_finished_nothing_hidden_is_left_of_it(pair: Pair, tmp_path: Path) -> None:
    made = merge(*pair.args, tmp_path / "out", options=UNSYNCED).manifest
    shutil.rmtree(tmp_path / "out")
    with Output(tmp_path / "out", made.merge_id) as output:
        assert output.begin(MORE) is None
        output.write_weights(MORE, carry_out)
        merge(*pair.args, tmp_path / "out", options=UNSYNCED)
        assert len(names_in(tmp_path)) == 2
        assert output.commit() == made
        assert names_in(tmp_path) == {"out"}


def test_what_a_killed_run_left_of_a_finished_merge_is_swept_up(pair: Pair, tmp_path: Path) -> None:
    made = merge(*pair.args, tmp_path / "out", options=UNSYNCED).manifest
    leave_as_killed(tmp_path / "out", made.merge_id)
    assert Output(tmp_path / "out", made.merge_id).finished() == made
    assert names_in(tmp_path) == {"out"}


def test_what_a_run_leaves_that_is_killed_meanwhile_is_swept_up_by_the_one_that_commits(tmp_path: Path) -> None:
    with Output(tmp_path / "out", IDENTITY) as output:
        output.begin(ONE_FILE)
        output.write_weights(ONE_FILE, carry_out)
        leave_as_killed(tmp_path / "out", IDENTITY)
        output.commit()
        assert names_in(tmp_path) == {"out"}


def leave_as_killed(path: Path, identity: str) -> None:
    staging = Staging(path, identity)
    staging._release()  # the kernel lets go of its lock
    assert staging.path.exists()


# The output of an older version.

OLD_ROW = {
    "layer": "0", "alpha": "0.25", "drift": 0.1, "interpolated": 1, "identical": 0, "copied": 0, "left_out": 0,
    "parameters": 4, "reasons": [],
}  # fmt: skip
OLD_INPUT = {
    "reference": "base", "container": "safetensors", "files": [{"file": "model.safetensors", "size": 10}],
    "tensors": 1, "parameters": 4, "fingerprint": "1f96",
}  # fmt: skip
OLD: dict[str, Any] = {
    "format": 1, "speechft_merge": "0.1.0", "merge_id": IDENTITY, "command": ["base", "finetuned"],
    "recipe": {
        "alpha": 0.3, "layer_alpha": ["0=0.1"], "weights": [2.0], "dtype": "keep", "format": "auto", "keep_head": False,
        "extrapolate": False,
    },
    "base": OLD_INPUT, "finetuned": [OLD_INPUT], "counts": {"interpolated": 1}, "coverage": 1.0, "layers": [OLD_ROW],
    "identical": [], "not_interpolated": {}, "left_out": [],
    "outputs": [{"file": "model.safetensors", "size": 4, "xxh128": "9243"}],
    "companions": [{"file": "config.json", "sha256": "96ca"}],
}  # fmt: skip
"""A manifest as version 0.1 wrote it."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An output of version 0.1, with a report."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "README.md", "similarity.json", "similarity.png"):
        (folder / name).write_bytes(b"data")
    (folder / "speechft_merge.json").write_text(json.dumps(OLD, indent=2))
    return folder


def test_the_output_of_an_older_version_is_not_taken_for_finished(old: Path) -> None:
    assert Output(old, IDENTITY).finished() is None


def test_the_output_of_an_older_version_can_be_replaced(
    old: Path, pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(tmp_path)
    refused = run(*pair.args, "-o", "old")
    assert refused.code == CANNOT_CREATE
    assert "already exists and holds another merge\nhint: pass --overwrite to replace it" in refused.err
    assert snapshot(tmp_path) == before
    replaced = run(*pair.args, "-o", "old", "--overwrite")
    assert replaced.code == 0, replaced.err
    assert names_in(tmp_path) == {"old"}
    assert manifest_of(old)["format"] == 3
    assert "similarity.json" not in names_in(old)


def test_the_recipe_of_an_older_version_can_be_given_again(old: Path, pair: Pair, run: Run, tmp_path: Path) -> None:
    assert run(*pair.args, "-o", "new", "--recipe", old / "speechft_merge.json").code == 0
    recipe = manifest_of(tmp_path / "new")["recipe"]
    assert (recipe["alpha"], recipe["layer_alpha"]) == (0.3, ["0=0.1"])
    assert recipe["weight"] == []  # that of a single fine-tune, which has no effect


@pytest.mark.parametrize(
    "named", [[], [{"file": "../thesis.tex"}], [{"file": 1}], ["thesis.tex"], {"file": "thesis.tex"}, None], ids=str
)
def test_beside_an_older_manifest_too_a_file_that_it_does_not_name_is_never_lost(
    named: object, old: Path, pair: Pair, run: Run, snapshot: Snapshot
) -> None:
    (old / "thesis.tex").write_text("years of work")
    (old / "speechft_merge.json").write_text(json.dumps(OLD | {"companions": [*OLD["companions"]], "outputs": named}))
    before = snapshot(old)
    ran = run(*pair.args, "-o", "old", "--overwrite")
    assert ran.code == CANNOT_CREATE
    assert "thesis.tex" in ran.err
    assert snapshot(old) == before


def times_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [folder, *folder.iterdir()]}


# A merge into an output that is there.


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


def test_what_macos_puts_into_an_output_does_not_keep_it(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    for name in (".DS_Store", "._model.safetensors"):
        (tmp_path / "out" / name).touch()
    assert run(*pair.args, "-o", "out", "--alpha", "0.5", "--overwrite").code == 0
    assert not (tmp_path / "out/.DS_Store").exists()
    (tmp_path / "out/._thesis.tex").touch()
    assert run(*pair.args, "-o", "out", "--overwrite").code == CANNOT_CREATE


# Two at once.


def refuse(self: Path, target: Path, rename: Callable[[Path, Path], Path] = Path.rename) -> Path:
    assert "out" not in (self.name, target.name), f"{self} is moved to {target}"
    return rename(self, target)


def test_the_slower_of_two_runs_does_not_move_the_output_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster, slower = Output(tmp_path / "out", IDENTITY), Output(tmp_path / "out", IDENTITY)
    with faster, slower:
        for output in (faster, slower):
            output.begin(ONE_FILE)
            output.put({"config.json": b"{}"})
        faster.commit()
        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OutputError, match="already exists"):  # the merge then finds that it is done
            slower.commit()
    assert names_in(tmp_path) == {"out"}


def test_a_directory_that_appears_during_the_merge_is_not_lost(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def appear(_: object) -> None:
        Path("out").mkdir(exist_ok=True)
        Path("out/thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match="out"):
        merge(pair.args[0], pair.args[1], "out", progress=appear)
    assert names_in(tmp_path) == {"out"}
    assert Path("out/thesis.tex").read_text() == "years of work"


def test_an_equal_merge_that_finishes_just_before_this_one_begins_is_found(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = merge(*pair.args, tmp_path / "elsewhere", options=UNSYNCED).manifest

    def be_faster(path: Path, overwrite: bool) -> None:
        (tmp_path / "elsewhere").rename(path)
        require_replaceable(path, overwrite)

    monkeypatch.setattr("speechft_merge.output.output.require_replaceable", be_faster)
    assert Output(tmp_path / "out", made.merge_id).begin(ONE_FILE) == made


def test_a_commit_that_another_process_came_before_is_tried_again(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what stands there and the rename: another merge's output, which may be replaced."""
    merge(*pair.args, tmp_path / "elsewhere", options=UNSYNCED)
    commit = Staging.commit

    def be_faster(staging: Staging, *_: object) -> None:
        monkeypatch.setattr(Staging, "commit", commit)
        (tmp_path / "elsewhere").rename(tmp_path / "out")
        raise OutputError("Directory not empty")

    monkeypatch.setattr(Staging, "commit", be_faster)
    with Output(tmp_path / "out", IDENTITY, overwrite=True) as output:
        output.begin(ONE_FILE)
        output.put({"config.json": b"{}"})
        assert output.commit() is None
    assert names_in(tmp_path) == {"out"}
    assert names_in(tmp_path / "out") == {"config.json"}


def test_however_often_a_commit_fails_the_earlier_output_stays(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    before, tries = snapshot(tmp_path), []

    def fail(one: Path, other: Path) -> bool:
        tries.append((one, other))
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("speechft_merge.output.staging.exchange", fail)
    with Output(tmp_path / "out", IDENTITY, overwrite=True) as output:
        output.begin(ONE_FILE)
        with pytest.raises(OutputError, match="Permission denied"):
            output.commit()
    assert len(tries) > 1
    assert snapshot(tmp_path) == before


def test_an_output_made_to_be_pushed_goes_unless_somebody_found_it(pair: Pair, tmp_path: Path) -> None:
    for found in (False, True):
        with open_merge(*pair.args, options=UNSYNCED) as opened:
            result = opened.write(tmp_path / "out", temporary=True)
        if found:
            assert merge(*pair.args, tmp_path / "out", options=UNSYNCED).already_done
        remove_temporary(tmp_path / "out", result.manifest.merge_id)
        assert names_in(tmp_path) == ({"out"} if found else set())
    merge(*pair.args, tmp_path / "out", alpha=0.5, options=replace(UNSYNCED, overwrite=True))
    remove_temporary(tmp_path / "out", result.manifest.merge_id)
    assert names_in(tmp_path) == {"out"}
