"""What the README says to type exists: commands, options, imports, linked files."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from speechft_merge.cli.app import app

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "examples", "examples/choosing_alpha", "examples/slurm", "examples/speech_ft", "examples/stage1")
READMES = [ROOT / folder / "README.md" for folder in FOLDERS]
PROGRAM = "speechft-merge"


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in any of these languages."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if kind in languages]


def code_spans(text: str) -> list[str]:
    """The code within prose, line breaks undone."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def arguments(line: str) -> list[str] | None:
    """What follows the program's name; None of a line that does not call it."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:
        return None
    calls = [i for i, word in enumerate(words) if Path(word).name == PROGRAM]
    return words[calls[0] + 1 :] if calls else None


def commands(path: Path) -> list[list[str]]:
    """The arguments of every call that a README shows."""
    text = path.read_text()
    lines = [line for block in blocks(text, "shell", "console", "bash", "sh") for line in block.splitlines()]
    return [words for line in [*lines, *code_spans(text)] if (words := arguments(line))]


SHOWN = {path: commands(path) for path in READMES}
CALLS = {" ".join(words): words for shown in SHOWN.values() for words in shown}


def program() -> Any:
    """The command line, all of it but what its commands do."""
    made: Any = typer.main.get_command(app)
    for command in made.commands.values():
        command.callback = lambda **_: None
    return made


def options() -> set[str]:
    """Those of all commands; a hidden one is there to be refused."""
    everything = program()
    parameters = [p for command in (everything, *everything.commands.values()) for p in command.params]
    shown = [p for p in parameters if not getattr(p, "hidden", False)]
    return {name for p in shown for name in (*p.opts, *p.secondary_opts)} | {"--help"}


def parse(words: list[str]) -> None:
    """Read a command line as the program does, and do nothing; of a command's bare name, whether there is one."""
    if len(words) > 1:
        program().main(list(words), PROGRAM, standalone_mode=False)
    else:
        assert words[0] in program().commands


def test_the_readme_shows_every_command() -> None:
    assert {words[0] for words in SHOWN[READMES[0]]} >= program().commands.keys()


@pytest.mark.parametrize("words", CALLS.values(), ids=CALLS)
def test_every_call_that_is_shown_is_understood(words: list[str]) -> None:
    parse(words)
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options()


@pytest.mark.parametrize("words", [["a", "b", "--nonsense"], ["inspect", "-q"], ["compare", "a", "b", "--alpha", "x"]])
def test_a_call_that_is_not_understood_would_be_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|missing|valid float"):
        parse(words)


def test_every_option_that_prose_names_exists() -> None:
    spans = [span for span in code_spans(READMES[0].read_text()) if not span.startswith("pip ")]
    named = {option for span in spans for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert len(named) > 10
    assert named - options() == set()


@pytest.mark.parametrize("block", blocks(READMES[0].read_text(), "python"), ids=lambda block: block.splitlines()[0])
def test_every_import_that_is_shown_works(block: str) -> None:
    statements = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert statements
    for statement in statements:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                import_module(alias.name)
        else:
            module = import_module(str(statement.module))
            assert [alias.name for alias in statement.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("path", [*READMES, ROOT / "speechft_merge/README.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_linked_file_is_there(path: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in link]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
