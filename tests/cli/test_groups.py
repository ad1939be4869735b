"""Groups of options: dataclasses in a command's signature, options one by one on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import pytest
import typer

from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.help import GroupedHelp

if TYPE_CHECKING:
    from conftest import Run

SEEN: list[tuple[object, ...]] = []


@dataclass(frozen=True)
class Fruit:
    panel: ClassVar[str] = "Fruit"
    apples: Annotated[int, typer.Option(min=1, help="How many.")] = 3
    pears: Annotated[list[str] | None, typer.Option("--pear", "-p", help="May be repeated.")] = None


@dataclass(frozen=True)
class Basket(Fruit):
    panel: ClassVar[str] = "Basket"
    where: Annotated[Path | None, typer.Option(metavar="DIR")] = None
    full: Annotated[bool, typer.Option("--full")] = False


@with_groups
def pick(
    name: Annotated[str, typer.Argument()], *, basket: Basket, loud: Annotated[bool, typer.Option("--loud")] = False
) -> None:
    """Pick some."""
    SEEN.append((name, basket, loud))


app = typer.Typer(rich_markup_mode=None)
app.command(cls=GroupedHelp)(pick)


@app.callback()
def root() -> None:
    """Do things."""


def called(*words: str) -> tuple[object, ...]:
    app(["pick", *words], standalone_mode=False)
    return SEEN.pop()


def test_a_command_gets_its_groups_filled() -> None:
    assert called("me") == ("me", Basket(), False)
    given = called("-p", "a", "me", "--pear", "b", "--full", "--apples", "7", "--where", "there", "--loud")
    assert given == ("me", Basket(7, ["a", "b"], Path("there"), True), True)


def test_options_of_a_group_are_checked_as_any_other() -> None:
    with pytest.raises(typer.BadParameter):
        called("me", "--apples", "0")


def test_the_help_lists_options_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    app(["pick", "--help"], standalone_mode=False)
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if re.fullmatch(r"\w+:", line)]
    assert titles == ["Arguments:", "Basket:", "Messages:"]
    assert out.index("Basket:") < out.index("--apples") < out.index("--full") < out.index("Messages:")


@pytest.mark.parametrize("command", ["merge", "compare", "inspect", "push"])
def test_the_help_of_a_command_lists_each_option_once(command: str, run: Run) -> None:
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", run(command, "--help").out, flags=re.MULTILINE)
    assert sorted(set(listed)) == sorted(listed)
    assert "--json" in listed
    assert ("--alpha" in listed) == (command in ("merge", "compare"))
    assert ("--probe" in listed) == (command in ("merge", "compare"))
    assert ("--private" in listed) == (command in ("merge", "push"))


def test_options_that_commands_share_read_the_same(run: Run) -> None:
    def section(command: str, title: str) -> list[str]:
        return re.split(r"\n\n", run(command, "--help").out.split(f"\n{title}:\n")[1])[0].split()

    assert section("compare", "Machine") == section("merge", "Machine")
    assert section("compare", "Messages") == section("merge", "Messages") == section("inspect", "Messages")
    assert set(section("compare", "Features")) < set(section("merge", "Features"))
