"""What README and guides show to type does what they say, on small models of the same names."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hub_fixtures import hub, hub_server
from pages import GUIDES, PROGRAM, ROOT, Block, blocks, is_operator, page_name, split
from processes import plain_environment
from workspace import add_program, fill_hub, make_workspace, training

if TYPE_CHECKING:
    from conftest import Run
    from harness import HubServer

__all__ = ["hub", "hub_server"]

ME = "hf_me"
PAGES = [ROOT / "README.md", *GUIDES]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return make_workspace(tmp_path_factory.mktemp("guides"))


@pytest.fixture
def here(workspace: Path, tmp_path: Path) -> Path:
    """A copy that a page may change."""
    return Path(shutil.copytree(workspace, tmp_path / "work"))


def type_line(line: str, here: Path, path: str, hub: HubServer) -> tuple[int, str]:
    """Give a line to a shell; its exit code, and what it printed."""
    environment = plain_environment() | hub.env(ME) | {"PATH": f"{path}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, encoding="utf-8", check=False)
    return done.returncode, done.stdout + done.stderr


def plain_words(line: str) -> list[str] | None:
    """The arguments of a line that calls the command and needs no shell to be understood."""
    program, *words = split(line)
    return None if program != PROGRAM or any(map(is_operator, words)) else words


def expected_code(line: str) -> int:
    """What a line's comment says that it exits with."""
    told = re.search(r"# exits with (\d+)", line)
    return int(told[1]) if told else 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_each_command_of_a_page_does_what_the_page_says(
    page: Path, here: Path, tmp_path: Path, hub: HubServer, run: Run
) -> None:
    path, text = add_program(tmp_path / "bin"), page.read_text()
    remote = "facebook/" in text
    if remote:
        fill_hub(hub, here)
    shown = [line for block in blocks(text, "console") for line in block.commands]
    for block in blocks(text, "yaml"):
        (here / block.file).write_text(block.text)
    for line in shown:
        words = plain_words(line)
        if remote or words is None:
            code, told = type_line(line, here, path, hub)
        else:
            ran = run(*words, cwd=here)
            code, told = ran.code, ran.out + ran.err
        assert code == expected_code(line), f"{line}\n{told}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text(), "python")], ids=page_name)
@pytest.mark.filterwarnings("ignore")
def test_the_python_of_a_page_runs_in_its_order(page: Path, here: Path) -> None:
    known = training(here)
    with contextlib.chdir(here):
        for block in blocks(page.read_text(), "python"):
            exec(compile(block.text, page_name(page), "exec"), known)


def test_a_comment_tells_the_exit_code() -> None:
    assert expected_code("$ speechft-merge a b  # exits with 65: because") == 65
    assert expected_code("$ speechft-merge a b  # why not") == 0


def test_commands_of_a_block_are_read_whole() -> None:
    block = Block("console", "", "$ one \\\n    two\nout\n  $ three\n")
    assert block.commands == ["one     two", "three"]
