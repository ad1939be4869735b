"""The package's map is true: every module lies in one of its rooms, and imports point up in its table only."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import speechft_merge

PACKAGE = Path(speechft_merge.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
APART = {"stage1/": {"errors.py", "layouts/"}}
"""Rooms that import less than the table allows."""


def table() -> list[list[str]]:
    """The cells of the map's table of rooms, a row a room."""
    section = (PACKAGE / "README.md").read_text().partition("| room | holds | does not |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    return [row for row in rows if row[0].startswith("`")]


ROOMS = [row[0].strip("`") for row in table()]


def room_of(path: Path) -> str:
    """A folder of the package, or a module beside these."""
    first, *rest = path.relative_to(PACKAGE).parts
    return f"{first}/" if rest else first


def imports(source: str) -> Iterator[str]:
    """Full names of all that is imported from the package, wherever in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == PACKAGE.name)


def module_of(name: str) -> Path:
    """The module that an import of this name runs: a module, or the one that has a member of that name."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py"))
    return next((found for found in candidates if found.is_file()), path.parent / "__init__.py")


@functools.cache
def edges() -> frozenset[tuple[Path, Path]]:
    """(module, a module that it imports)."""
    return frozenset((module, module_of(name)) for module in MODULES for name in imports(module.read_text()))


def test_the_map_has_every_room_once_and_no_other() -> None:
    assert len(set(ROOMS)) == len(ROOMS)
    assert set(ROOMS) == {room_of(module) for module in MODULES}


def test_the_map_says_of_every_room_what_it_holds_and_what_it_does_not() -> None:
    assert [row for row in table() if len(row) != 3 or not all(row)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_above_it(room: str) -> None:
    above = APART.get(room, set(ROOMS[: ROOMS.index(room)])) | {room}
    wrong = [
        f"{importer.relative_to(PACKAGE)} imports {imported.relative_to(PACKAGE)}"
        for importer, imported in edges()
        if room_of(importer) == room and room_of(imported) not in above
    ]
    assert sorted(wrong) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[Path, set[Path]] = {module: set() for module in MODULES}
    for importer, imported in edges():
        graph[importer].add(imported)
    while leaves := [module for module, wanted in graph.items() if not wanted]:
        graph = {module: wanted - set(leaves) for module, wanted in graph.items() if module not in leaves}
    assert sorted(str(module.relative_to(PACKAGE)) for module in graph) == []


def test_every_kind_of_import_is_seen() -> None:
    source = """
import os, speechft_merge.sizes as s
from speechft_merge import merging, merge
from speechft_merge.plan.plan import Plan
from speechft_merge.checkpoints import Checkpoint
if TYPE_CHECKING:
    from speechft_merge.record import card
def f():
    from speechft_merge.errors import UsageError
"""
    found = {str(module_of(name).relative_to(PACKAGE)) for name in imports(source)}
    wanted = "sizes.py merging.py __init__.py plan/plan.py checkpoints/__init__.py record/card.py errors.py"
    assert found == set(wanted.split())
