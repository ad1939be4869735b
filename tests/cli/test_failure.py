"""How errors look: parts of their own, one style whoever raises them, JSON if asked, foreign text escaped and short."""

from __future__ import annotations

import json
import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from speechft_merge.cli.failure import explain
from speechft_merge.errors import CheckpointError, OutputError, UsageError, quote

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair, Ran, Run, Tiny

LONGEST = 2000
MEGA = 1_000_000


def failure_of(ran: Ran) -> dict[str, Any]:
    """The one JSON object on stderr."""
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert list(found) == ["error", "found", "hint", "exit_code"]
    assert found["exit_code"] == ran.code
    return found


def write_safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# The parts.


def test_message_found_and_hint_are_apart_and_together_in_the_text() -> None:
    error = OutputError("out already exists", found="thesis.tex", hint="pass --overwrite")
    assert (error.message, error.found, error.hint) == ("out already exists", "thesis.tex", "pass --overwrite")
    assert str(error) == "out already exists; found thesis.tex; pass --overwrite"
    assert str(UsageError("no")) == "no"
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.message, copied.found, copied.hint) == (error.message, error.found, error.hint)
    assert str(error.within("here")) == f"here: {error}"


def test_each_part_has_a_line_of_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/notes.txt").touch()
    lines = run("inspect", "bad").err.splitlines()
    assert lines[0].startswith("speechft-merge: error: bad holds no weights (expected ")
    assert lines[1:] == ["  found: notes.txt"]
    (tmp_path / "two").mkdir()
    for name in ("a.bin", "b.bin"):
        (tmp_path / "two" / name).touch()
    lines = run("inspect", "two").err.splitlines()
    assert lines == [
        "speechft-merge: error: two holds 2 candidates for the weights: a.bin, b.bin", "hint: name one of them",
    ]  # fmt: skip


def test_notes_are_hints_too() -> None:
    error = OutputError("cannot write", hint="make room")
    error.add_note("finished shards are kept")
    assert explain(error).in_words().splitlines()[1:] == ["hint: make room", "hint: finished shards are kept"]
    assert json.loads(explain(error).in_json())["hint"] == "make room; finished shards are kept"


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["a", "b", "--nonsense"], "no such option: --nonsense", "merge -h"),
        (["a", "b", "--alhpa", "1"], "no such option: --alhpa", "did you mean --alpha?"),
        (["a", "b", "--lora-alpha", "much"], "invalid value for '--lora-alpha': 'much' is not a number", "merge -h"),
        (["a", "b", "--workers", "x"], "invalid value for '--workers': 'x' is not a whole number", "merge -h"),
        (["compare", "a", "b", "--keep-head"], "no such option: --keep-head", "is an option of merge and of sweep"),
        (["a", "b", "--dtype", "float61"], "dtype 'float61' is unknown", "did you mean float16? use one of keep,"),
        (["sweep", "a", "b", "--submit", "slrum"], "submit 'slrum' is unknown", "did you mean slurm?"),
        (["./a"], "missing argument 'FINETUNED...'", "merge -h"),
        (["inspect"], "missing argument 'MODEL...'", "inspect -h"),
        (["inspct", "a"], "no such command: 'inspct'", "did you mean 'inspect'?"),
        (["a", "b", "--workers", "0"], "invalid value for '--workers': 0 is not in the range x>=1", "merge -h"),
        (["a", "b", "--threads", "2"], "no such option: --threads", "pass --workers"),
        (["push", "a"], "missing argument 'REPO'", "push -h"),
    ],
)
def test_a_usage_error_is_told_in_the_style_of_all_others(args: list[str], error: str, hint: str, run: Run) -> None:
    ran = run(*args)
    assert (ran.code, ran.out) == (2, "")
    first, *hints = ran.err.splitlines()
    assert first == f"speechft-merge: error: {error}"
    assert all(line.startswith("hint: ") for line in hints)
    assert any(hint in line for line in hints)
    told = failure_of(run(*args, "--json"))
    assert told["error"] == error
    assert hint in told["hint"]


@pytest.mark.parametrize("command", [[], ["merge"]])
def test_force_is_refused_with_a_hint_that_names_what_took_its_place(
    command: list[str], pair: Pair, run: Run, tmp_path: Path
) -> None:
    ran = run(*command, *pair.args, "-o", "out", "--force")
    assert (ran.code, ran.out) == (2, "")
    error, hint = ran.err.splitlines()
    assert error == "speechft-merge: error: no such option: --force"
    assert hint.startswith("hint: ")
    assert "--overwrite" in hint
    assert "--allow-unrelated" in hint
    assert list(tmp_path.iterdir()) == []


# In every mode.


@pytest.mark.parametrize("option", ["-q", "-vv"])
def test_an_error_looks_the_same_with_every_option(option: str, pair: Pair, run: Run) -> None:
    ran = run(pair.base, "./missing", "-o", "out", option)
    assert (ran.code, ran.out) == (66, "")
    assert ran.err == "speechft-merge: error: ./missing: no local path of that name\n"


def test_an_error_is_one_json_object_on_stderr_if_results_are(pair: Pair, run: Run) -> None:
    assert failure_of(run(pair.base, "./missing", "-o", "out", "--json")) == {
        "error": "./missing: no local path of that name", "found": None, "hint": None, "exit_code": 66,
    }  # fmt: skip
    assert run(*pair.args, "-o", "out", "--json").code == 0
    told = failure_of(run(*pair.args, "-o", "out", "--json", "--alpha", "0.5"))
    assert told["exit_code"] == 73
    assert "--overwrite" in told["hint"]


def test_a_word_after_two_dashes_is_no_option(run: Run) -> None:
    assert run("inspect", "--", "--json").err.startswith("speechft-merge: error: --json: no local path")


def test_an_error_has_its_traceback_on_request(pair: Pair, spawn: Run) -> None:
    ran = spawn(pair.base, "./missing", "-o", "out", env={"SPEECHFT_MERGE_DEBUG": "1"})
    assert (ran.code, ran.out) == (66, "")
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.splitlines()[-1] == "speechft-merge: error: ./missing: no local path of that name"


def test_an_unexpected_error_is_reported_likewise_and_has_its_traceback(
    pair: Pair, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("of a new kind\x1b")

    monkeypatch.setattr("speechft_merge.checkpoints.open_checkpoint", fail)
    ran = run("inspect", pair.base)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("Traceback (most recent call last)")
    error, hint = ran.err.splitlines()[-2:]
    assert error == "speechft-merge: error: ZeroDivisionError: of a new kind\\x1b"
    assert hint.startswith("hint: please report this bug in speechft-merge")
    assert failure_of(run("inspect", pair.base, "--json"))["error"] == "ZeroDivisionError: of a new kind\\x1b"


# Foreign text.

ODD = ["\x1b[2J", "\nspeechft-merge: all is well", "\r", "\x00", "\u202e", "\x9b1m"]


@pytest.mark.parametrize("json_option", [[], ["--json"]], ids=["words", "json"])
@pytest.mark.parametrize("odd", ODD)
def test_control_characters_of_tensor_names_are_escaped(
    odd: str, json_option: list[str], tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    base = tiny.weights() | {f"encoder.{odd}": np.zeros((32, 32), np.float32)}
    finetuned = tiny.finetuned(base) | {f"encoder.{odd}": np.zeros((16, 1), np.float32)}
    models = [tiny.write(tmp_path / name, weights) for name, weights in (("a", base), ("b", finetuned))]
    ran = run(*models, *json_option)
    assert (ran.code, ran.out) == (65, "")
    assert odd not in ran.err
    escaped = odd.encode("unicode_escape").decode()
    if json_option:
        assert escaped in failure_of(ran)["error"]
    else:
        assert escaped in ran.err
        assert [line.split(":")[0] for line in ran.err.splitlines()] == ["speechft-merge", "hint"]


def test_control_characters_of_a_path_are_escaped(run: Run) -> None:
    assert (
        run("inspect", "./\x1b[31mred\n").err
        == "speechft-merge: error: ./\\x1b[31mred\\n: no local path of that name\n"
    )


def hostile_headers() -> dict[str, object]:
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    long = "\x1b[2J" * (MEGA // 4)
    deep = "[" * 500 + "]" * 500
    return {
        "shape of a million sizes": {"a": good | {"shape": [1] * (MEGA // 2)}},
        "shape of a million words": {"a": good | {"shape": ["x"] * (MEGA // 2)}},
        "shape that is a word": {"a": good | {"shape": long}},
        "shape that is a table": {"a": good | {"shape": {str(i): i for i in range(MEGA // 10)}}},
        "sizes of thousands of digits": b'{"a": {"dtype": "F32", "data_offsets": [0, 4], "shape": ['
        + b"9" * 4000
        + b"]}}",
        "offsets": {"a": good | {"data_offsets": [0] * (MEGA // 2)}},
        "dtype": {"a": good | {"dtype": long}},
        "dtype that is a list": {"a": good | {"dtype": [long]}},
        "name": {long: good | {"shape": [2]}},
        "name twice": b'{"' + b"n" * MEGA + b'": 1, "' + b"n" * MEGA + b'": 1}',
        "name without an entry": {long: None},
        "name that overlaps": {"a": good, long: good},
        "nested": f'{{"a": {{"dtype": "F32", "data_offsets": [0, 4], "shape": {deep}}}}}'.encode(),
    }


@pytest.mark.parametrize("header", hostile_headers().values(), ids=hostile_headers())
def test_text_of_megabytes_is_cut_and_the_message_keeps_its_sense(header: object, run: Run, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "bad.safetensors", header, bytes(4))
    ran = run("inspect", path)
    assert ran.code == 65
    assert len(ran.err) < LONGEST
    assert "\x1b" not in ran.err
    assert ran.err.startswith(f"speechft-merge: error: {path}: ")
    told = failure_of(run("inspect", path, "--json"))
    assert len(told["error"]) < LONGEST
    reasons = ("shape", "data_offsets", "dtype", "occurs twice", "overlaps", "takes", "nested")
    assert any(reason in told["error"] for reason in reasons)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "/" * MEGA}},
        {"weight_map": {"a": [0] * MEGA}},
        {"weight_map": {"a": "\x1b" * MEGA}},
        {"weight_map": {"n" * MEGA: "a.safetensors"}},
    ],
    ids=["folder", "list", "missing", "tensor"],
)
def test_names_of_shards_are_cut(index: object, run: Run, tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_safetensors(tmp_path / "a.safetensors", {"a": entry}, bytes(4))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    ran = run("inspect", path)
    assert ran.code in (65, 66)
    assert len(ran.err) < LONGEST
    assert "\x1b" not in ran.err
    assert ran.err.startswith(f"speechft-merge: error: {path} ")


@pytest.mark.parametrize("text", ["k" * MEGA + ": 1", "dtype: " + "d" * MEGA, "layer_alpha: [" + "r" * MEGA + "]"])
def test_words_of_a_recipe_are_cut(text: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    ran = run(*pair.args, "--recipe", "recipe.yaml")
    assert ran.code == 2
    assert len(ran.err) < LONGEST
    assert ran.err.startswith("speechft-merge: error: ")


def test_whatever_a_message_holds_it_is_cut_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    error = CheckpointError("e" * MEGA, found="\x1b" * MEGA, hint="h" * MEGA)
    words, document = explain(error).in_words(), json.loads(explain(error).in_json())
    assert len(words) < LONGEST
    assert words.startswith("speechft-merge: error: eee")
    assert sum(len(document[part]) for part in ("error", "found", "hint")) < LONGEST
    print(words, file=sys.stderr)
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["a", "it's", b"\x00", [1, 2], (1,), {"a": 1}, 3, None, "x" * 80])
def test_a_short_value_is_quoted_whole(value: object) -> None:
    assert quote(value) == repr(value)


@pytest.mark.parametrize("value", ["x" * 81, "\0" * 50, b"x" * MEGA, [1] * MEGA, {i: i for i in range(MEGA)}, 10**100])
def test_a_long_value_is_quoted_to_its_limit(value: object) -> None:
    told = quote(value)
    assert told.endswith("...")
    assert len(told) == 83
    assert repr(value).startswith(told[:80])
