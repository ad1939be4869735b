"""What the command refuses: with which code, with a message that helps, and without a trace on the disk."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from conftest import Pair, Ran, Run, Snapshot, Tiny, Weights

USAGE, DATA, NO_INPUT, CANNOT_CREATE, IO_ERROR = 2, 65, 66, 73, 74


def assert_explained(ran: Ran, code: int, *words: str) -> None:
    """The code, and on stderr alone a message with these words."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert [word for word in words if word not in ran.err] == [], ran.err


# Models that cannot be read. Each writes `bad` and names it; the command is then run with it on either side.


def truncated(bad: Path, tiny: Tiny) -> Path:
    path = tiny.write(bad, tiny.weights()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return bad


def overlapping(bad: Path, tiny: Tiny) -> Path:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return write_header(bad / "model.safetensors", {"a": entry, "b": entry}, bytes(8))


def endless_header(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    (bad / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    return bad


def no_tensors(bad: Path, tiny: Tiny) -> Path:
    return write_header(bad / "model.safetensors", {}, b"")


def missing_shard(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, bad / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return bad


class Evil:
    """Pickles into a call."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._mark),)


def code_in_a_pickle(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(bad / "ran")))
    return bad


def code_in_a_torch_zip(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    with zipfile.ZipFile(bad / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Evil(bad / "ran")}))
    return bad


def foreign(start: bytes) -> Callable[[Path, Tiny], Path]:
    def write(bad: Path, tiny: Tiny) -> Path:
        bad.mkdir()
        (bad / "model.safetensors").write_bytes(start)
        return bad

    return write


def empty_directory(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    return bad


def other_files_only(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    (bad / "notes.txt").write_text("no weights here")
    return bad


def two_candidates(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, bad / "first.safetensors")
    save_file({"a": np.zeros(2, np.float32)}, bad / "second.safetensors")
    return bad


def nothing(bad: Path, tiny: Tiny) -> Path:
    return bad


def pipe(bad: Path, tiny: Tiny) -> Path:
    os.mkfifo(bad)
    return bad


def adapter(bad: Path, tiny: Tiny) -> Path:
    bad.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, bad / "adapter_model.safetensors")
    return bad


def long_name(bad: Path, tiny: Tiny) -> Path:
    return bad.with_name("x" * 300)


def unknown_home(bad: Path, tiny: Tiny) -> Path:
    return Path("~nobody-has-this-name/model")


def integers(bad: Path, tiny: Tiny) -> Path:
    return tiny.write(bad, {name: values.astype(np.int32) for name, values in tiny.weights().items()})


def other_names(bad: Path, tiny: Tiny) -> Path:
    return tiny.write(bad, {f"tensor_{i}": values for i, values in enumerate(tiny.weights().values())})


def broken_config(bad: Path, tiny: Tiny) -> Path:
    tiny.write(bad, tiny.finetuned(tiny.weights()))
    (bad / "config.json").write_text("{")
    return bad


def write_header(path: Path, header: dict[str, Any], data: bytes) -> Path:
    """A safetensors file whose header may say anything."""
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path.parent


UNREADABLE: list[Any] = [
    pytest.param(truncated, DATA, ("bytes long", "cut short", "download it again"), id="truncated"),
    pytest.param(overlapping, DATA, ("'b'", "overlaps"), id="overlapping"),
    pytest.param(endless_header, DATA, ("header of", "not a safetensors file"), id="endless-header"),
    pytest.param(no_tensors, DATA, ("no tensors",), id="no-tensors"),
    pytest.param(missing_shard, NO_INPUT, ("2 shards", "missing: model-00002-of-00002"), id="missing-shard"),
    pytest.param(code_in_a_pickle, DATA, ("pickle", "never executed"), id="code-in-a-pickle"),
    pytest.param(code_in_a_torch_zip, DATA, ("no state dict", "mkdir"), id="code-in-a-torch-zip"),
    pytest.param(foreign(b""), DATA, ("no checkpoint", "expected safetensors", "found: nothing"), id="empty-file"),
    pytest.param(foreign(b"weights"), DATA, ("no checkpoint", "expected safetensors"), id="text"),
    pytest.param(foreign(b"<!DOCTYPE html>"), DATA, ("web page",), id="web-page"),
    pytest.param(foreign(b"version https://git-lfs.github.com/spec/v1\n"), DATA, ("git lfs pull",), id="lfs-pointer"),
    pytest.param(foreign(b"\x89HDF\r\n\x1a\n"), DATA, ("HDF5",), id="hdf5"),
    pytest.param(empty_directory, NO_INPUT, ("holds no weights", "expected", "found: nothing"), id="empty-dir"),
    pytest.param(other_files_only, NO_INPUT, ("holds no weights", "notes.txt"), id="other-files"),
    pytest.param(two_candidates, NO_INPUT, ("2 candidates", "first.safetensors", "name one of them"), id="candidates"),
    pytest.param(nothing, NO_INPUT, ("no local path",), id="missing-path"),
    pytest.param(pipe, NO_INPUT, ("not a regular file",), id="pipe"),
    pytest.param(adapter, DATA, ("adapter",), id="adapter"),
    pytest.param(long_name, NO_INPUT, ("xxx",), id="long-name"),
    pytest.param(unknown_home, NO_INPUT, ("~nobody-has-this-name",), id="unknown-home"),
]
UNFIT: list[Any] = [
    pytest.param(integers, DATA, ("quantised weights", "full precision"), id="integers"),
    pytest.param(other_names, DATA, ("no tensor in common", "tensor_"), id="other-names"),
]


@pytest.mark.parametrize(("write", "code", "words"), UNREADABLE + UNFIT)
def test_a_bad_finetuned_model_is_refused(
    write: Callable[[Path, Tiny], Path], code: int, words: tuple[str, ...], tiny: Tiny, pair: Pair, run: Run,
    tmp_path: Path, snapshot: Snapshot,
) -> None:  # fmt: skip
    bad = write(tmp_path / "bad", tiny)
    before = snapshot(tmp_path)
    assert_explained(run(pair.base, bad, "-o", "out"), code, *words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("write", "code", "words"),
    [*UNREADABLE[:2], *UNREADABLE[5:8], *UNFIT, pytest.param(broken_config, DATA, ("JSON",))],
)
def test_a_bad_base_is_refused(
    write: Callable[[Path, Tiny], Path], code: int, words: tuple[str, ...], tiny: Tiny, pair: Pair, run: Run,
    tmp_path: Path, snapshot: Snapshot,
) -> None:  # fmt: skip
    bad = write(tmp_path / "bad", tiny)
    before = snapshot(tmp_path)
    assert_explained(run(bad, pair.finetuned, "-o", "out"), code, *words)
    assert snapshot(tmp_path) == before


def test_a_tensor_name_that_is_no_text_is_refused(run: Run, tmp_path: Path) -> None:
    header = {"\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    bad = write_header(tmp_path / "bad" / "model.safetensors", header, bytes(8))
    assert_explained(run(bad, bad, "-o", "out"), DATA, "\\ud800")


WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""Prefix of a command for which file modes count, whoever runs it."""
modes_count = pytest.mark.skipif(
    bool(WITHOUT_PRIVILEGES) and shutil.which("setpriv") is None,
    reason="root may do all, and setpriv is missing",
)


@modes_count
@pytest.mark.parametrize("closed", ["model.safetensors", "."])
def test_what_may_not_be_read_is_refused(closed: str, tiny: Tiny, pair: Pair, spawn: Run, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "bad", tiny.weights()) / closed
    path.chmod(0)
    try:
        ran = spawn(pair.base, tmp_path / "bad", "-o", "out", wrapper=WITHOUT_PRIVILEGES)
    finally:
        path.chmod(0o700)
    assert_explained(ran, NO_INPUT, "Permission denied")
    assert not (tmp_path / "out").exists()


@modes_count
def test_a_path_that_may_not_be_looked_at_is_not_said_to_be_missing(pair: Pair, spawn: Run, tmp_path: Path) -> None:
    (tmp_path / "closed/model").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    try:
        ran = spawn(pair.base, tmp_path / "closed/model", "-o", "out", wrapper=WITHOUT_PRIVILEGES)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert_explained(ran, NO_INPUT, "cannot read", "closed/model: Permission denied")


# Models that can be read and must not be merged.


def run_changed(
    change: Callable[[Weights], None], tiny: Tiny, run: Run, folder: Path, *options: str, side: str = "finetuned"
) -> Ran:
    """Merge a pair after a change to one side."""
    base = tiny.weights()
    weights = {"base": base, "finetuned": tiny.finetuned(base)}
    change(weights[side])
    inputs = [tiny.write(folder / name, values) for name, values in weights.items()]
    return run(*inputs, "-o", "out", *options)


@pytest.mark.parametrize("shape", [(1,), (1, 32), (32, 1), (64,), ()])
def test_shapes_that_numpy_would_broadcast_are_refused(
    shape: tuple[int, ...], tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        weights["encoder.layer_norm.bias"] = np.zeros(shape, np.float32)

    ran = run_changed(change, tiny, run, tmp_path)
    assert_explained(ran, DATA, "encoder.layer_norm.bias", "[32]", str(list(shape)), "give a fine-tune of this base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", ["base", "finetuned"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["encoder.layers.1.attention.k_proj.weight", "feature_projection.projection.bias"])
def test_a_number_that_is_not_finite_is_refused_and_found(
    side: str, value: float, name: str, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        weights[name].reshape(-1)[7] = value

    ran = run_changed(change, tiny, run, tmp_path, side=side)
    assert_explained(ran, DATA, str(tmp_path / side / "model.safetensors"), repr(name), str(value), "element 7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "finetuned"]


def test_a_number_that_is_not_finite_is_refused_in_a_copied_tensor_too(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights["masked_spec_embed"][0] = np.nan

    ran = run_changed(change, tiny, run, tmp_path, "--layer-alpha", "masked_spec_embed=0", side="base")
    assert_explained(ran, DATA, "masked_spec_embed", "nan")
    assert not (tmp_path / "out").exists()


def test_a_result_beyond_the_range_of_the_type_is_refused(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights["encoder.layer_norm.bias"][0] = 1e6

    ran = run_changed(change, tiny, run, tmp_path, "--dtype", "float16")
    assert_explained(ran, DATA, "encoder.layer_norm.bias", "float16", "choose a wider --dtype")
    assert not (tmp_path / "out").exists()


def test_unrelated_weights_are_refused_unless_allowed(tiny: Tiny, spawn: Run, tmp_path: Path) -> None:
    inputs = [tiny.write(tmp_path / f"{seed}", tiny.weights(seed)) for seed in (0, 1)]
    ran = spawn(*inputs, "-o", "out")
    assert_explained(ran, DATA, "is not a fine-tune of", "cosine", "0.7 or more", "--allow-unrelated")
    assert not (tmp_path / "out").exists()
    allowed = spawn(*inputs, "-q", "-o", "out", "--allow-unrelated")
    assert (allowed.code, allowed.out) == (0, "out\n")
    assert "warning" in allowed.err
    assert "is not a fine-tune" in allowed.err


def test_a_finetune_that_has_a_stack_in_part_is_refused_unless_allowed(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    base = tiny.weights()
    few = {name: values for name, values in tiny.finetuned(base).items() if "layers.1" not in name}
    few = {name: values for name, values in few.items() if "pos_conv" not in name and "attention" not in name}
    inputs = [tiny.write(tmp_path / "base", base), tiny.write(tmp_path / "few", few)]
    ran = run(*inputs, "-o", "out")
    assert_explained(ran, DATA, "has 2 layers in the encoder", "--allow-partial")
    assert not (tmp_path / "out").exists()
    allowed = run(*inputs, "-q", "-o", "out", "--allow-partial")
    assert (allowed.code, allowed.out) == (0, "out\n")
    assert "layers 1 would be the base's; merged anyway" in allowed.err
    assert "has the encoder in part only" in allowed.err
    merged = tiny.read(tmp_path / "out")
    name = "encoder.layers.1.attention.k_proj.weight"
    assert np.array_equal(merged[name], base[name])


# Arguments that cannot be meant.

BAD_OPTIONS: list[Any] = [
    (("--alpha", "1.5"), ("1.5", "0 (the base) to 1 (the fine-tune)", "--extrapolate")),
    (("--alpha", "-0.1"), ("-0.1", "--extrapolate")),
    (("--alpha", "nan"), ("nan", "finite")),
    (("--alpha", "inf", "--extrapolate"), ("inf", "finite")),
    (("--alpha", "much"), ("much",)),
    (("--dtype", "int8"), ("int8", "float32", "bfloat16")),
    (("--dtype", "float64"), ("float64", "use one of")),
    (("--layer-alpha", "cnn"), ("'cnn' is not a rule", "SELECTOR=ALPHA")),
    (("--layer-alpha", "=1"), ("is not a rule",)),
    (("--layer-alpha", "cnn=much"), ("'much' is not a number",)),
    (("--layer-alpha", "cnn=nan"), ("finite",)),
    (("--layer-alpha", "cnn=2"), ("2", "--extrapolate")),
    (("--layer-alpha", "cnn=0:1"), ("a ramp goes over blocks", "has none")),
    (("--layer-alpha", "2=0.1"), ("blocks 0 to 1",)),
    (("--layer-alpha", "1-0=0.1"), ("blocks 0 to 1",)),
    (("--layer-alpha", "decoder.0=0.1"), ("no blocks",)),
    (("--layer-alpha", "no.such.name=0.1"), ("matches nothing", "cnn, ")),
    (("--weight", "1", "--weight", "2"), ("2 weights for 1", "one each")),
    (("--weight", "0"), ("positive", "0")),
    (("--weight", "-1"), ("positive", "-1")),
    (("--weight", "nan"), ("positive", "nan")),
    (("--max-shard-size", "0GB"), ("'0GB' is not a size", "500MB")),
    (("--max-shard-size", "2"), ("'2' is not a size", "with a unit")),
    (("--max-shard-size", "5XB"), ("'5XB' is not a size",)),
    (("--max-shard-size", "-1MB"), ("'-1MB' is not a size",)),
    (("--max-shard-size", ""), ("not a size",)),
    (("--workers", "0"), ("workers",)),
    (("--no-such-option",), ("--no-such-option",)),
    (("-o", "out.safetensors"), ("out.safetensors", "must be a directory")),
    (("-o", "out.bin"), ("must be a directory",)),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=[" ".join(options) for options, _ in BAD_OPTIONS])
def test_a_bad_option_is_refused(
    options: tuple[str, ...], words: tuple[str, ...], pair: Pair, run: Run, tmp_path: Path
) -> None:
    assert_explained(run(*pair.args, *options), USAGE, *words)
    assert list(tmp_path.iterdir()) == []


BAD_RECIPES: list[Any] = [
    pytest.param("alpha: [", ("not valid YAML",), id="no-yaml"),
    pytest.param("- 0.25", ("holds list", "give a table"), id="list"),
    pytest.param("", ("NoneType", "give a table"), id="empty"),
    pytest.param("alhpa: 0.25", ("holds alhpa", "layer_alpha"), id="unknown-key"),
    pytest.param("alpha: much", ("'much' is not a number",), id="text"),
    pytest.param("alpha: .nan", ("finite",), id="nan"),
    pytest.param("alpha: 2", ("--extrapolate",), id="outside"),
    pytest.param("alpha: 2026-13-01", ("recipe",), id="impossible-date"),
    pytest.param("layer_alpha: [cnn]", ("is not a rule",), id="no-rule"),
    pytest.param("keep_head: maybe", ("true or false",), id="flag"),
    pytest.param("dtype: int8", ("int8", "use one of"), id="dtype"),
    pytest.param("!!python/object/apply:os.mkdir [ran]", ("not valid YAML",), id="code"),
    pytest.param("[" * 1000, ("recipe",), id="deep"),
    pytest.param("\x00", ("not valid YAML",), id="binary"),
]


@pytest.mark.parametrize(("text", "words"), BAD_RECIPES)
def test_a_bad_recipe_is_refused(
    text: str, words: tuple[str, ...], pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    before = snapshot(tmp_path)
    assert_explained(run(*pair.args, "-o", "out", "--recipe", "recipe.yaml"), USAGE, *words)
    assert snapshot(tmp_path) == before


def test_a_recipe_that_is_not_there_is_refused(pair: Pair, run: Run) -> None:
    ran = run(*pair.args, "-o", "out", "--recipe", "recipe.yaml")
    assert_explained(ran, NO_INPUT, "cannot read the recipe recipe.yaml", "No such file")


def test_a_missing_finetuned_model_is_a_usage_error(pair: Pair, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(pair.base)
    assert_explained(ran, USAGE, "missing argument", "hint: ", "-h")
    assert "finetuned" in ran.err.lower()
    assert list(tmp_path.iterdir()) == []


# Outputs that cannot be.


@pytest.mark.parametrize("output", ["finetuned", "finetuned/merged", "link", "finetuned/../base"])
def test_an_output_that_overlaps_an_input_is_refused(
    output: str, pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    for folder in (pair.base, pair.finetuned):
        shutil.copytree(folder, tmp_path / "models" / folder.name)
    (tmp_path / "models/link").symlink_to("finetuned")
    before = snapshot(tmp_path)
    ran = run("base", "finetuned", "--overwrite", "-o", output, cwd=tmp_path / "models")
    assert_explained(ran, USAGE, "overlap", "choose another output directory")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_existing_output_is_refused_and_left_alone(
    kind: str, pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    if kind == "folder":
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("years of work")
    else:
        (tmp_path / "out").write_text("years of work")
    before = snapshot(tmp_path)
    assert_explained(run(*pair.args, "-o", "out"), CANNOT_CREATE, "out already exists", "choose another", "-o")
    assert snapshot(tmp_path) == before


def test_an_output_below_a_regular_file_is_refused(pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot) -> None:
    (tmp_path / "file").write_text("text")
    before = snapshot(tmp_path)
    assert_explained(run(*pair.args, "-o", "file/out"), CANNOT_CREATE, "cannot write", "check that the folder exists")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("output", ["x" * 300, "~nobody-has-this-name/out"], ids=["too-long", "unknown-home"])
def test_an_impossible_output_name_is_refused(output: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    ran = run(*pair.args, "-o", output)
    assert ran.code in (USAGE, CANNOT_CREATE), ran.err
    assert_explained(ran, ran.code, output[:20])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_on_disk(spawn: Run, tmp_path: Path) -> Callable[..., Ran]:
    """Run the command in a file system of its own, mounted with some options; then list on stderr what is there."""
    (tmp_path / "disk").mkdir()
    namespace = next((how for how in ("-m", "-rm") if _may_mount(how, tmp_path / "disk")), None)
    if namespace is None:
        pytest.skip("tmpfs cannot be mounted here")

    def run_on_disk(options: str, *args: object) -> Ran:
        script = 'mount -t tmpfs -o "$0" tmpfs disk && cd disk && { "$@"; code=$?; ls -Am >&2; exit $code; }'
        return spawn(*args, wrapper=["unshare", namespace, "sh", "-c", script, options])

    return run_on_disk


def _may_mount(how: str, place: Path) -> bool:
    command = ["unshare", how, "mount", "-t", "tmpfs", "tmpfs", str(place)]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


def test_a_disk_too_small_is_refused_before_anything_is_written(pair: Pair, run_on_disk: Callable[..., Ran]) -> None:
    ran = run_on_disk("size=64k", *pair.args, "-o", "out")
    assert_explained(
        ran, IO_ERROR, "the output needs", "bytes", "free", "free some space, or choose another output (-o)"
    )
    assert len(ran.said) == 2  # the error and the hint: the listing is empty


@pytest.mark.parametrize("inodes", range(3, 7))
def test_a_disk_that_fills_up_leaves_nothing_behind(inodes: int, pair: Pair, run_on_disk: Callable[..., Ran]) -> None:
    ran = run_on_disk(f"size=8m,nr_inodes={inodes}", *pair.args, "-o", "out")
    assert_explained(ran, IO_ERROR, "cannot write", "No space left on device", "free some space")
    assert len(ran.said) == 2


def test_a_file_too_large_for_the_limits_is_refused(pair: Pair, spawn: Run, tmp_path: Path) -> None:
    limit = (50_000, 50_000)
    ran = spawn(*pair.args, "-o", "out", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_explained(ran, IO_ERROR, "cannot write", "File too large", "choose another output")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_disk_is_refused(pair: Pair, run_on_disk: Callable[..., Ran]) -> None:
    ran = run_on_disk("ro", *pair.args, "-o", "out")
    assert_explained(ran, CANNOT_CREATE, "cannot write", "Read-only file system", "is writable")


@modes_count
def test_a_folder_that_may_not_be_written_is_refused(pair: Pair, spawn: Run, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    ran = spawn(*pair.args, "-o", "closed/out", wrapper=WITHOUT_PRIVILEGES)
    assert_explained(ran, CANNOT_CREATE, "cannot write", "Permission denied")
    assert list((tmp_path / "closed").iterdir()) == []
