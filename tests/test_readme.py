"""What the pages say to type exists: commands, options, imports, linked files; the README leads to each."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import GUIDES, PAGES, PROGRAM, READMES, ROOT, arguments, blocks, code_spans, page_name

from speechft_merge.cli.app import app

README = READMES[0]
LINE = re.compile(r"\]\(([^)\s]+)\)")


def commands(path: Path) -> list[list[str]]:
    """The arguments of every call that a page shows."""
    text = path.read_text()
    shown = blocks(text, "shell", "console", "bash", "sh")
    lines = [line for block in shown for line in block.text.replace("\\\n", "").splitlines()]
    return [words for line in [*lines, *code_spans(text)] if (words := arguments(line.strip()))]


SHOWN = {path: commands(path) for path in PAGES}
CALLS = {" ".join(words): words for shown in SHOWN.values() for words in shown}
SNIPPETS = [(path, block.text) for path in PAGES for block in blocks(path.read_text(), "python")]


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
    words = ["merge" if word == "COMMAND" else word for word in words]  # of any command
    if len(words) > 1:
        program().main(list(words), PROGRAM, standalone_mode=False)
    else:
        assert words[0] in program().commands


def test_the_readme_shows_every_command() -> None:
    assert {words[0] for words in SHOWN[README]} >= program().commands.keys() - {"merge", "help"}


def test_the_readme_is_read_in_two_minutes_and_leads_to_every_guide() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert {README.parent / link for link in LINE.findall(text)} >= {*GUIDES, ROOT / "CONTRIBUTING.md"}


@pytest.mark.parametrize("words", CALLS.values(), ids=CALLS)
def test_every_call_that_is_shown_is_understood(words: list[str]) -> None:
    parse(words)
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options()


@pytest.mark.parametrize(
    "words", [["a", "b", "--nonsense"], ["inspect", "-q"], ["compare", "a", "b", "--workers", "x"]]
)
def test_a_call_that_is_not_understood_would_be_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|missing|valid int"):
        parse(words)


@pytest.mark.parametrize("path", [README, *GUIDES], ids=page_name)
def test_every_option_that_prose_names_exists(path: Path) -> None:
    spans = [span for span in code_spans(path.read_text()) if not re.match(r"pip|uv |.* pip |--index-url", span)]
    named = {option for span in spans for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert named - options() == set()


def test_code_in_prose_is_found() -> None:
    text = "Pass `--alpha 1 --nonsense`; not ```\n--other\n```"
    assert [option for span in code_spans(text) for option in re.findall(r"--[a-z]+", span)][:2] == [
        "--alpha",
        "--nonsense",
    ]


@pytest.mark.parametrize(("path", "block"), SNIPPETS, ids=[f"{page_name(p)}: {b.splitlines()[0]}" for p, b in SNIPPETS])
def test_every_import_that_is_shown_works(path: Path, block: str) -> None:
    for statement in ast.walk(ast.parse(block)):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                import_module(alias.name)
        elif isinstance(statement, ast.ImportFrom):
            module = import_module(str(statement.module))
            assert [alias.name for alias in statement.names if not hasattr(module, alias.name)] == []


def anchors(path: Path) -> set[str]:
    """What a link to a page may end in: its headings, as GitHub makes anchors of them."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "speechft_merge/README.md"], ids=page_name)
def test_every_linked_file_and_heading_is_there(path: Path) -> None:
    for link in LINE.findall(path.read_text()):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
