"""The command that merges: how it is called, what it prints, and what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from speechft_merge import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair, Run, Snapshot, Tiny, Weights

EPSILON = float(np.finfo(np.float32).eps)


def assert_close(merged: Weights, expected: Weights) -> None:
    """Equal but for the last two bits: `expected` is worked out in float64."""
    assert merged.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(merged[name], values, rtol=4 * EPSILON, atol=4 * EPSILON, err_msg=name)


def mixed(base: Weights, finetuned: Weights, alpha: float) -> Weights:
    """The formula, in float64, under the base's names."""
    return {
        name: values.astype(np.float64)
        + alpha * (finetuned[f"hubert.{name}"].astype(np.float64) - values.astype(np.float64))
        for name, values in base.items()
    }


# How it is called.


@pytest.mark.parametrize(
    "words",
    [
        "BASE FINE --alpha 0.5 -o out -q",
        "--alpha 0.5 -o out -q BASE FINE",
        "-q BASE --alpha=0.5 FINE --output out",
        "-o out -q --alpha 0.5 -- BASE FINE",
        "merge BASE FINE --alpha 0.5 -o out -q",
        "merge -q --alpha 0.5 -o out BASE FINE",
        "merge -q --alpha 0.5 -o out -- BASE FINE",
    ],
)
def test_options_stand_anywhere_and_merge_may_be_left_out(
    words: str, pair: Pair, tiny: Tiny, spawn: Run, tmp_path: Path
) -> None:
    places = {"BASE": str(pair.base), "FINE": str(pair.finetuned)}
    ran = spawn(*(places.get(word, word) for word in words.split()))
    assert (ran.code, ran.out, ran.err) == (0, "out\n", "")
    assert_close(tiny.read(tmp_path / "out"), mixed(tiny.read(pair.base), tiny.read(pair.finetuned), 0.5))


@pytest.mark.parametrize("words", ["-- inspect FINE", "./inspect FINE", "merge inspect FINE", "-q inspect FINE"])
def test_a_model_called_like_a_command_can_be_merged(words: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    shutil.copytree(pair.base, tmp_path / "inspect")
    ran = run(*(str(pair.finetuned) if word == "FINE" else word for word in words.split()))
    assert ran.code == 0, ran.err
    assert ran.lines[-1] == "finetuned-merged-0.25"
    assert (tmp_path / "finetuned-merged-0.25/model.safetensors").is_file()


@pytest.mark.parametrize(("word", "meant"), [("inspct", "inspect"), ("merg", "merge"), ("inspects", "inspect")])
def test_a_mistyped_command_is_no_model(word: str, meant: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    ran = run(word, pair.base)
    assert ran.code == 2
    assert word in ran.err
    assert f"hint: did you mean '{meant}'?" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_name_close_to_a_command_is_merged_if_it_exists(pair: Pair, run: Run, tmp_path: Path) -> None:
    shutil.copytree(pair.base, tmp_path / "inspct")
    assert run("inspct", pair.finetuned, "-q", "-o", "out").code == 0


def test_version_is_one_line(spawn: Run) -> None:
    ran = spawn("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"speechft-merge {__version__}\n", "")


def test_no_arguments_show_the_help(spawn: Run) -> None:
    ran = spawn()
    assert ran.code == 2
    assert "merge" in ran.out + ran.err
    assert "inspect" in ran.out + ran.err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["merge", "--help"], ["merge", "-h"], ["inspect", "--help"]])
def test_help_goes_to_stdout(words: list[str], run: Run) -> None:
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Usage: ")


def test_merge_help_names_every_option(run: Run) -> None:
    text = run("merge", "--help").out
    options = (
        "output alpha layer-alpha weight recipe keep-head dtype extrapolate max-shard-size overwrite allow-unrelated"
    )
    more = "dry-run workers no-fsync quiet verbose json"
    assert [name for name in f"{options} {more}".split() if f"--{name}" not in text] == []


def test_the_installed_script_is_the_module(pair: Pair, tmp_path: Path) -> None:
    script = shutil.which("speechft-merge", path=os.path.dirname(sys.executable))  # noqa: PTH120
    if script is None:
        pytest.skip("installed without its script")
    done = subprocess.run([script, *pair.args, "-q"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "finetuned-merged-0.25\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("speechft-merge --alp", "--alpha"),
        ("speechft-merge a b --alp", "--alpha"),
        ("speechft-merge a b --alpha 0.5 --max-s", "--max-shard-size"),
        ("speechft-merge merge a b --dr", "--dry-run"),
        ("speechft-merge inspect a --js", "--json"),
        ("speechft-merge --vers", "--version"),
        ("speechft-merge ins", "inspect"),
    ],
)
def test_the_shell_completes_options_of_merge_without_its_name(words: str, expected: str, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['speechft-merge']; from speechft_merge.__main__ import main; main()"
    asked = {
        "_SPEECHFT_MERGE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected]


# What it prints.


def test_the_last_line_is_the_output_path(pair: Pair, run: Run) -> None:
    ran = run(*pair.args, "-o", "some/where/out")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[-1] == "some/where/out"
    assert len(ran.lines) > 5


@pytest.mark.parametrize("again", [False, True], ids=["first", "already-done"])
def test_quiet_prints_the_output_path_and_nothing_else(again: bool, pair: Pair, run: Run) -> None:
    if again:
        run(*pair.args, "-o", "out")
    ran = run(*pair.args, "-o", "out", "-q")
    assert (ran.code, ran.out, ran.err) == (0, "out\n", "")


@pytest.mark.parametrize("options", [[], ["-q"], ["-vv"]])
def test_json_is_one_document(options: list[str], pair: Pair, run: Run, tmp_path: Path) -> None:
    first, second = run(*pair.args, "-o", "out", "--json", *options), run(*pair.args, "-o", "out", "--json", *options)
    assert (first.code, second.code) == (0, 0)
    assert first.json["output"] == second.json["output"] == "out"
    assert (first.json["already_done"], second.json["already_done"]) == (False, True)
    assert first.json["warnings"] == []
    manifest = json.loads((tmp_path / "out/speechft_merge.json").read_text())
    assert {**first.json, **manifest} == first.json
    assert {**second.json, **manifest} == second.json


def test_json_is_one_document_with_warnings_too(pair: Pair, spawn: Run, tmp_path: Path) -> None:
    shutil.copytree(pair.base, tmp_path / "frozen")
    ran = spawn(pair.base, "frozen", "-o", "out", "--json")
    assert ran.code == 0
    assert len(ran.json["warnings"]) == 1
    assert ran.err == f"speechft-merge: warning: {ran.json['warnings'][0]}\n"


@pytest.mark.parametrize("options", [[], ["-q"], ["--json"]])
def test_a_dry_run_writes_nothing(options: list[str], pair: Pair, run: Run, tmp_path: Path) -> None:
    ran = run(*pair.args, "-o", "out", "--dry-run", "--max-shard-size", "50KB", *options)
    assert (ran.code, ran.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    if options == ["--json"]:
        assert ran.json["output"] == "out"
    else:
        assert ran.lines[-1] == "out"
        assert (len(ran.lines) == 1) == (options == ["-q"])


def test_a_dry_run_tells_what_the_merge_will_do(pair: Pair, run: Run, tmp_path: Path) -> None:
    args = [*pair.args, "-o", "out", "--json", "--max-shard-size", "50KB"]
    planned, done = run(*args, "--dry-run").json, run(*args).json
    assert planned["recipe"] == done["recipe"]
    assert planned["files"] == [{"file": entry["file"], "size": entry["size"]} for entry in done["outputs"]]
    assert planned["needed_bytes"] == sum(entry["size"] for entry in done["outputs"])
    for name, count in planned["counts"].items():
        assert done["counts"][name] == count
    assert [row["layer"] for row in planned["layers"]] == [row["layer"] for row in done["layers"]]
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {entry["file"] for entry in planned["files"]} | set(planned["companions"]) < there


def test_a_dry_run_where_free_space_is_unknown_says_so(pair: Pair, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    ran = run(*pair.args, "-o", "out", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert "of disk (free space unknown), " in ran.out
    assert run(*pair.args, "-o", "out", "--dry-run", "--json").json["free_bytes"] is None


def test_verbose_tells_more_on_stderr_only(pair: Pair, run: Run) -> None:
    plain, verbose, most = (run(*pair.args, "-o", f"out{i}", *v) for i, v in enumerate([[], ["-v"], ["-vv"]]))
    assert plain.lines[:-1] == verbose.lines[:-1] == most.lines[:-1]
    assert plain.err == ""
    assert "cosine to the base" in verbose.err
    assert "encoder.layers.0.attention.k_proj.weight: interpolated alpha 0.25" in most.err
    assert "hubert.lm_head" not in verbose.err


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"GITHUB_ACTIONS": "true"}])
@pytest.mark.parametrize("words", [["merge", "--help"], ["--nonsense"], []], ids=["help", "usage-error", "merge"])
def test_a_pipe_gets_no_colour(env: dict[str, str], words: list[str], pair: Pair, spawn: Run) -> None:
    ran = spawn(*(words or pair.args), env=env)
    assert "\x1b" not in ran.out + ran.err


def test_names_of_tensors_cannot_steer_the_terminal(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    odd = "encoder.\x1b[2J\n\r\x9b\u202e.weight"
    base = tiny.weights() | {odd: np.ones((4, 4), np.float32), f"{odd}2": np.ones(3, np.float32)}
    inputs = [
        tiny.write(tmp_path / "a", base),
        tiny.write(tmp_path / "b", tiny.finetuned(base) | {f"{odd}3": base[odd]}),
    ]
    ran = run(*inputs, "-vv", "-o", "out", "--allow-partial")
    assert ran.code == 0
    assert not set("\x1b\r\x9b\u202e") & set(ran.out + ran.err)
    assert "encoder.\\x1b[2J\\n\\r\\x9b\\u202e.weight: interpolated" in ran.err
    assert tiny.read(tmp_path / "out").keys() == base.keys()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_stream_of_few_characters_is_no_obstacle(encoding: str, pair: Pair, spawn: Run) -> None:
    ran = spawn(*pair.args, "-q", "-o", "\u97f3\u58f0", env={"PYTHONIOENCODING": encoding})
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.lines) == 1


def test_a_terminal_gets_the_same_words(pair: Pair, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "speechft_merge", *pair.args, "-o", "out"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := terminal.read(1 << 16):
                shown += part
    assert process.wait(timeout=100) == 0
    lines = shown.decode().split("\r\n")
    assert lines[-2:] == ["out", ""]
    assert "48 interpolated (6 of them identical), 2 left out" in shown.decode()


def test_a_reader_that_leaves_early_is_no_error_of_ours(pair: Pair, tmp_path: Path) -> None:
    """`speechft-merge inspect -v model | head -1`: no traceback, and the code of a closed pipe."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "speechft_merge", "inspect", "-v", str(pair.base)]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (141, "")


# What it writes.


def test_the_default_is_a_quarter_of_the_way(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    assert_close(tiny.read(tmp_path / "out"), mixed(tiny.read(pair.base), tiny.read(pair.finetuned), 0.25))


def test_alpha_0_gives_the_base_and_1_the_finetuned_bit_for_bit(
    pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    for alpha in (0, 1):
        ran = run(*pair.args, "-o", f"out{alpha}", "--alpha", alpha)
        assert ran.code == 0, ran.err
    base, finetuned = tiny.read(pair.base), tiny.read(pair.finetuned)
    for name, values in tiny.read(tmp_path / "out0").items():
        assert values.tobytes() == base[name].tobytes()
    for name, values in tiny.read(tmp_path / "out1").items():
        assert values.tobytes() == finetuned[f"hubert.{name}"].tobytes()


@pytest.mark.parametrize("alpha", [-0.5, 1.5, 3])
def test_extrapolation_is_done_when_asked_for(alpha: float, pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    ran = run(*pair.args, "-o", "out", "--alpha", alpha, "--extrapolate")
    assert ran.code == 0, ran.err
    assert_close(tiny.read(tmp_path / "out"), mixed(tiny.read(pair.base), tiny.read(pair.finetuned), alpha))


@pytest.mark.parametrize(("weights", "shares"), [([], (0.5, 0.5)), ([3, 1], (0.75, 0.25)), ([0.2, 0.8], (0.2, 0.8))])
def test_several_finetuned_models_are_averaged_by_weight(
    weights: list[float], shares: tuple[float, float], tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    base = tiny.weights()
    others = [tiny.finetuned(base, seed) for seed in (1, 2)]
    inputs = [tiny.write(tmp_path / f"{i}", values) for i, values in enumerate([base, *others])]
    options = [word for weight in weights for word in ("--weight", str(weight))]
    ran = run(*inputs, "-o", "out", "--alpha", 0.4, *options)
    assert ran.code == 0, ran.err
    wide = [{name: values.astype(np.float64) for name, values in model.items()} for model in (base, *others)]
    expected = {
        name: start + 0.4 * sum(share * (other[name] - start) for share, other in zip(shares, wide[1:], strict=True))
        for name, start in wide[0].items()
    }
    assert_close(tiny.read(tmp_path / "out"), expected)


def test_rules_give_layers_alphas_of_their_own_and_later_ones_win(
    pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    rules = ["layers=0.1:0.5", "pos_conv=0", "encoder.layers.1.attention.**=0.9", "projection=0.2", "projection=0.3"]
    ran = run(*pair.args, "-o", "out", *(word for rule in rules for word in ("--layer-alpha", rule)))
    assert ran.code == 0, ran.err
    base, finetuned, merged = tiny.read(pair.base), tiny.read(pair.finetuned), tiny.read(tmp_path / "out")
    for name, alpha in {
        "masked_spec_embed": 0.25,
        "feature_projection.projection.weight": 0.3,
        "encoder.pos_conv_embed.conv.bias": 0,
        "encoder.layers.0.attention.k_proj.weight": 0.1,
        "encoder.layers.1.feed_forward.output_dense.weight": 0.5,
        "encoder.layers.1.attention.k_proj.weight": 0.9,
    }.items():
        assert_close({name: merged[name]}, {name: mixed(base, finetuned, alpha)[name]})


def test_a_recipe_file_says_the_same_as_options_and_options_win(
    pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    recipe = {"alpha": 0.4, "layer_alpha": {"cnn": 0, "0": 0.1}, "extrapolate": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    ran = run(*pair.args, "-o", "out", "--recipe", "recipe.yaml", "--layer-alpha", "0=0.2", "--json")
    assert ran.code == 0, ran.err
    options = ["--alpha", "0.4", "--layer-alpha", "cnn=0", "--layer-alpha", "0=0.2"]
    assert run(*pair.args, "-o", "same", *options).code == 0
    assert_close(tiny.read(tmp_path / "out"), tiny.read(tmp_path / "same"))
    assert ran.json["recipe"]["layer_alpha"] == ["cnn=0.0", "0=0.1", "0=0.2"]
    assert run(*pair.args, "-o", "other", "--recipe", "recipe.yaml", "--alpha", "0.7", "--json").json["recipe"][
        "alpha"
    ] == pytest.approx(0.7)


def test_keep_head_writes_the_finetuned_class(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    ran = run(*pair.args, "-o", "out", "--keep-head", "--alpha", 0.5)
    assert ran.code == 0, ran.err
    base, finetuned, merged = tiny.read(pair.base), tiny.read(pair.finetuned), tiny.read(tmp_path / "out")
    assert merged.keys() == finetuned.keys()
    for name in ("lm_head.weight", "lm_head.bias"):
        assert merged[name].tobytes() == finetuned[name].tobytes()
    expected = {f"hubert.{name}": values for name, values in mixed(base, finetuned, 0.5).items()}
    assert_close({name: merged[name] for name in expected}, expected)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["HubertForCTC"]


@pytest.mark.parametrize(("option", "dtype"), [("float16", np.float16), ("float32", np.float32)])
def test_dtype_rounds_once(option: str, dtype: Any, pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    assert run(*pair.args, "-o", "wide").code == 0
    assert run(*pair.args, "-o", "out", "--dtype", option).code == 0
    merged = tiny.read(tmp_path / "out")
    for name, values in tiny.read(tmp_path / "wide").items():
        assert merged[name].tobytes() == values.astype(dtype).tobytes()


def test_a_frozen_encoder_gives_the_base_and_a_warning(tiny: Tiny, spawn: Run, tmp_path: Path) -> None:
    base = tiny.weights()
    inputs = [tiny.write(tmp_path / "base", base), tiny.write(tmp_path / "frozen", tiny.ctc(base))]
    ran = spawn(*inputs, "-q", "-o", "out")
    assert (ran.code, ran.out) == (0, "out\n")
    assert "does not differ from the base" in ran.err
    for name, values in tiny.read(tmp_path / "out").items():
        assert values.tobytes() == base[name].tobytes()


def test_an_input_may_be_a_file_or_a_link(pair: Pair, tiny: Tiny, run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pair.base)
    ran = run("link", pair.finetuned / "model.safetensors", "-q")
    assert (ran.code, ran.out) == (0, "model-merged-0.25\n")
    assert_close(
        tiny.read(tmp_path / "model-merged-0.25"), mixed(tiny.read(pair.base), tiny.read(pair.finetuned), 0.25)
    )


@pytest.mark.parametrize(
    ("finetuned", "options", "name"),
    [
        ("models/asr/", [], "asr-merged-0.25"),
        ("models/asr", ["--alpha", "0.5"], "asr-merged-0.5"),
        ("models/asr.v2", [], "asr.v2-merged-0.25"),
        ("models/asr", ["--layer-alpha", "cnn=0"], "asr-merged-layerwise"),
    ],
)
def test_the_output_is_named_after_the_finetuned_model(
    finetuned: str, options: list[str], name: str, pair: Pair, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(pair.finetuned, tmp_path / finetuned)
    ran = run(pair.base, finetuned, "-q", *options)
    assert (ran.code, ran.out) == (0, f"{name}\n")
    assert (tmp_path / name / "model.safetensors").is_file()


def test_names_of_folders_may_be_any_bytes(pair: Pair, spawn: Run, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"mod\xe8le \n")
    shutil.copytree(pair.base, folder)
    ran = spawn(folder, pair.finetuned, "-q", "-o", "out")
    assert (ran.code, ran.out, ran.err) == (0, "out\n", "")


def test_inputs_are_only_read(pair: Pair, run: Run, tmp_path: Path, snapshot: Snapshot) -> None:
    for folder in (pair.base, pair.finetuned):
        shutil.copytree(folder, tmp_path / folder.name)
    before = snapshot(tmp_path)
    assert run("base", "finetuned", "-o", "out").code == 0
    assert before.items() <= snapshot(tmp_path).items()
