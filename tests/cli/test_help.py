"""The help: groups, examples that parse, choices, environment variables; and words that stand for a command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from pages import PROGRAM, arguments

import speechft_merge
from speechft_merge.choices import DTYPES, ESTIMATORS, FORMATS, METHODS, PLACES
from speechft_merge.cli.app import SYNONYMS, app
from speechft_merge.errors import SpeechFTMergeError

if TYPE_CHECKING:
    from conftest import Pair, Run

SOURCES = Path(speechft_merge.__file__).parent
GROUP: Any = typer.main.get_command(app)
COMMANDS: list[str] = [*GROUP.commands]
WORKING = [name for name in COMMANDS if name != "help"]
ORDER = ["Arguments", "What is mixed", "Output", "Hub", "Features", "Machine", "Messages", "Examples"]


def sections(text: str) -> dict[str, str]:
    """Title -> what stands under it."""
    parts = re.split(r"^([A-Z][\w ]+):\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def examples(text: str) -> list[list[str]]:
    lines = sections(text)["Examples"].replace("\\\n", "").splitlines()
    found = [arguments(line.strip()) for line in lines if line.strip()]
    return [words for words in found if words is not None]


def parsed(words: list[str]) -> None:
    """Read a command line as the program does, and do nothing."""
    made: Any = typer.main.get_command(app)
    for command in made.commands.values():
        command.callback = lambda **_: None
    made.main(list(words), PROGRAM, standalone_mode=False)


@pytest.mark.parametrize("command", WORKING)
def test_options_stand_in_the_same_groups_in_the_same_order(command: str, run: Run) -> None:
    titles = [*sections(run(command, "-h").out)]
    assert [title for title in titles if title in ORDER] == [title for title in ORDER if title in titles]
    assert {titles[0], titles[-2], titles[-1]} == {"Arguments", "Messages", "Examples"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_ends_in_examples_that_the_program_understands(command: str, run: Run) -> None:
    out = run(*command.split(), "--help").out
    shown = examples(out)
    assert 2 <= len(shown) <= 4
    for words in shown:
        parsed(words)
        assert not command or command in (words[0], "merge")
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("columns", [50, 80, 100, 300])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_the_width_of_the_terminal_up_to_a_readable_one(
    command: str, columns: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    told = sections(run(command, "--help").out)
    lines = [line for title, text in told.items() if title != "Examples" for line in text.splitlines()]
    longest = max(len(line) for line in lines if "[" not in line)
    assert longest <= min(columns, 120)
    if command in ("merge", "sweep"):
        assert longest > min(columns, 120) - 10
    assert not any(re.search(r"\w-$", line) for line in lines), "an option broken at its hyphen cannot be searched"


def test_no_metavar_is_a_type_of_typer_s(run: Run) -> None:
    assert [
        line for name in COMMANDS for line in run(name, "-h").out.splitlines() if re.search(r"--.* <\w", line)
    ] == []


def test_the_variables_that_are_read_are_named(run: Run) -> None:
    code = "\n".join(path.read_text() for path in SOURCES.rglob("*.py") if path.name != "help.py")
    own = set(re.findall(r"\bSPEECHFT_MERGE_[A-Z]\w*", code))
    read = own | set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", code)) | {"HF_TOKEN", "HF_HUB_OFFLINE"}
    told = sections(run("--help").out)["Environment"]
    assert own
    assert {name for name in read - {"TERM"} if name not in told} == set()


@pytest.mark.parametrize("words", [["help"], ["help", "sweep"], ["help", "help"]])
def test_help_is_a_command(words: list[str], run: Run) -> None:
    asked = run(*words)
    assert (asked.code, asked.err) == (0, "")
    assert asked.out == run(*words[1:], "--help").out


def test_help_on_a_word_that_is_no_command_lists_them(run: Run) -> None:
    ran = run("help", "swep")
    assert ran.code == 2
    assert "did you mean sweep? use one of merge, inspect," in ran.err


@pytest.mark.parametrize("word", ["list", "frobnicate"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_word_alone_is_no_model(word: str, options: list[str], run: Run) -> None:
    ran = run(word, *options)
    assert ran.code == 2
    assert f"no such command: '{word}'" in ran.err
    assert f"the commands are {', '.join(COMMANDS)}" in ran.err


@pytest.mark.parametrize("word", SYNONYMS)
def test_what_others_call_a_command_leads_to_it(word: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    ran = run(word, *pair.args)
    assert ran.code == 2
    assert f"did you mean '{SYNONYMS[word]}'?" in ran.err
    assert SYNONYMS[word] in COMMANDS
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_called_as_others_call_a_command(pair: Pair, run: Run, tmp_path: Path) -> None:
    (tmp_path / "diff").symlink_to(pair.base)
    assert run("diff", pair.finetuned, "-q", "-o", "out").code == 0


def test_a_first_word_near_a_path_is_a_mistyped_path(pair: Pair, run: Run, tmp_path: Path) -> None:
    (tmp_path / "hubert-base-ls960").symlink_to(pair.base)
    ran = run("hubert-bse-ls960", pair.finetuned)
    assert ran.code == 66
    assert "found: hubert-base-ls960" in ran.err
    assert "commands" not in ran.err


def test_a_word_too_long_for_a_path_is_refused_as_any_other(pair: Pair, run: Run) -> None:
    assert run(LONG).code == 2
    assert run(LONG, pair.finetuned).code == 66


def test_a_first_word_near_nothing_may_be_a_model_or_a_command(pair: Pair, run: Run) -> None:
    ran = run("frobnicate", *pair.args)
    assert ran.code == 66
    assert "write a model on the Hub as org/name" in ran.err
    assert f"the commands are {', '.join(COMMANDS)}" in ran.err


MISTYPED = [
    ["verify", "mergd"],
    ["push", "mergd", "me/model"],
    ["sweep", "--collect", "-o", "mergd"],
    ["merge", "BASE", "FINE", "--recipe", "mergd"],
    ["compare", "BASE", "FINE", "--probe", "mergd"],
    ["sweep", "BASE", "FINE", "--wer", "mergd", "--no-cka"],
    ["sweep", "BASE", "FINE", "--probe-task", "phones=mergd", "--no-cka"],
    ["inspect", "mergd"],
]
LONG = "x" * 5000


@pytest.mark.parametrize("words", MISTYPED, ids=lambda words: words[0] + words[-2])
def test_a_mistyped_path_is_answered_with_the_nearest(words: list[str], pair: Pair, run: Run, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    ran = run(*({"BASE": str(pair.base), "FINE": str(pair.finetuned)}.get(word, word) for word in words))
    assert ran.code == 66
    assert re.search("found: .*merged$", ran.err, re.M)


CHOICES = {
    "merge --dtype": DTYPES, "merge --format": FORMATS, "merge --method": METHODS, "--method": METHODS,
    "sweep --submit": PLACES, "compare --estimator": ESTIMATORS, "merge --device": ("auto", "cpu", "cuda", "mps"),
    "help": COMMANDS, "diff --method": METHODS,
}  # fmt: skip


def completions(words: str, folder: Path) -> str:
    """What bash is offered for an empty word after these."""
    code = "import sys; sys.argv = ['speechft-merge']; from speechft_merge.__main__ import main; main()"
    asked = {
        "_SPEECHFT_MERGE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"{PROGRAM} {words} ",
        "COMP_CWORD": str(len(words.split()) + 1),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | asked, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("words", CHOICES)
def test_the_shell_offers_the_choices_of_an_option(words: str, tmp_path: Path) -> None:
    assert set(completions(words, tmp_path).split()) == {*CHOICES[words]}


@pytest.mark.parametrize("words", ["merge", "merge a", "merge a b --output", "compare a b --probe", "verify"])
def test_the_shell_offers_files_where_a_path_is_expected(words: str, tmp_path: Path) -> None:
    assert completions(words, tmp_path) == ""  # then bash completes files


@pytest.mark.parametrize("words", [words for words in CHOICES if words.startswith("merge")])
def test_the_help_lists_the_choices_of_an_option(words: str, run: Run) -> None:
    out = run("merge", "-h").out
    assert all(choice in out for choice in CHOICES[words])


@pytest.mark.parametrize(
    ("option", "words"),
    [("--dtype", DTYPES), ("--format", FORMATS), ("--method", METHODS), ("--estimator", ESTIMATORS)],
)
def test_what_the_help_lists_the_library_takes(option: str, words: tuple[str, ...]) -> None:
    from speechft_merge import ProbeRequest, Recipe

    made: Any = ProbeRequest if option == "--estimator" else Recipe
    for word in words:
        assert getattr(made(**{option[2:]: word}), option[2:]) == word
    with pytest.raises(SpeechFTMergeError, match="use one of " + ", ".join(words)):
        made(**{option[2:]: "nonsense"})
