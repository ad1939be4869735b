"""The project's pages in Markdown: which there are, and what they show to type."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "examples/guides").glob("*.md"))
FOLDERS = ("", "examples", "examples/choosing_alpha", "examples/slurm", "examples/speech_ft", "examples/stage1")
READMES = [ROOT / folder / "README.md" for folder in FOLDERS]
PAGES = [*READMES, *GUIDES, ROOT / "CONTRIBUTING.md"]
PROGRAM = "speechft-merge"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the name of the file that it is (if it has one), its text."""

    language: str
    file: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What follows the prompts, continued lines joined."""
        return re.findall(r"^\s*\$ (.*)$", self.text.replace("\\\n", ""), re.M)


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks in any of these languages; one in a list is indented."""
    found = re.findall(r"^ *```(\w*) ?([^\n]*)\n(.*?)^ *```$", text, re.M | re.S)
    return [Block(*one) for one in found if one[0] in languages]


def code_spans(text: str) -> list[str]:
    """The code within prose, line breaks undone."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def arguments(line: str) -> list[str] | None:
    """What follows the program's name, up to an operator of the shell; None of a line that does not call it."""
    try:
        words = split(line.removeprefix("$ "))
    except ValueError:
        return None
    if PROGRAM not in words:
        return None
    after = words[words.index(PROGRAM) + 1 :]
    return [*itertools.takewhile(lambda word: not is_operator(word), after)]


def split(line: str) -> list[str]:
    """The words of a line as a shell has them, its operators words of their own, without a comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return [*lexer]


def is_operator(word: str) -> bool:
    return set(word) <= set("();<>|&")


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))
