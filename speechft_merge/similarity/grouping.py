"""Says which recordings are one speaker's, or one session's: by a table, by folders, or by the names of files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError, quote
from speechft_merge.sources.nearby import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

AUTOMATIC, FILE = "auto", "file"
COLUMNS = ("group", "speaker", "voice")
"""What the column of a table may be called that says to which group a file belongs."""


def group_files(files: Sequence[Path], rule: str = AUTOMATIC) -> tuple[list[str], str]:
    """Return the group of each file, and by what it is told: `folder`, `name`, `file` or `pattern`. Pure.

    Args:
        files: paths, which need not exist.
        rule: AUTOMATIC for the first folder in which the paths differ, or where all lie in one folder the name up to
            its first - or _ (LibriSpeech's 1272/128104/1272-128104-0000.flac is 1272 either way); FILE for a group to
            each file; else a regular expression that is found in the path, its first group or all of it.

    Raises:
        UsageError: the regular expression is none, or finds nothing in a path.
    """
    whole = [Path(os.path.abspath(path)) for path in files]  # noqa: PTH100  (links stay as the user laid them)
    if rule not in (AUTOMATIC, FILE):
        pattern = parse_rule(rule)
        return [_matched(pattern, path) for path in whole], "pattern"
    common = os.path.commonpath([path.parent for path in whole])
    inner = [path.relative_to(common) for path in whole]
    by_name = [re.match(r"([^-_]+)[-_]", path.name) for path in inner]
    if rule == FILE or (not any(by_name) and all(len(path.parts) == 1 for path in inner)):
        return [str(path) for path in inner], "file"
    groups = [
        path.parts[0] if len(path.parts) > 1 else name[1] if name else path.stem
        for path, name in zip(inner, by_name, strict=True)
    ]
    return groups, "folder" if any(len(path.parts) > 1 for path in inner) else "name"


def parse_rule(rule: str) -> re.Pattern[str]:
    """Return a rule other than AUTOMATIC and FILE as a regular expression.

    Raises:
        UsageError: it is none.
    """
    try:
        return re.compile(rule)
    except re.error as error:
        raise UsageError(
            f"{quote(rule)} is no regular expression: {error}",
            hint=rf"give {AUTOMATIC}, {FILE} or one such as '/(\d+)-' (--group-by)",
        ) from error


def _matched(pattern: re.Pattern[str], path: Path) -> str:
    found = pattern.search(path.as_posix())
    group = found and found[min(1, pattern.groups)]
    if not group:
        raise UsageError(f"{quote(pattern.pattern)} finds no group in {path}", hint="give another one (--group-by)")
    return group


def read_groups(table: Path) -> tuple[dict[Path, str], str]:
    """Read a table whose first line names its columns, `path` and one of `COLUMNS`; others are passed over.

    Returns:
        File -> its group, paths being from where the table lies; and the name of the column.

    Raises:
        NotFoundError: the table, or a file that it names, does not exist.
        CheckpointError: it is of another form, or a path occurs twice.
    """
    rows = read_rows(table)
    heads = rows[0][1] if rows else []
    column = next((name for name in COLUMNS if name in heads), None)
    if column is None or "path" not in heads:
        raise CheckpointError(
            f"{table} does not say which recording is of which group",
            found=quote("\t".join(heads)),
            hint=f"name its columns in the first line: path<TAB>{' or '.join(COLUMNS)}",
        )
    groups: dict[str, str] = {}
    for number, row in rows[1:]:
        cells = dict(zip(heads, row, strict=False))
        path, group = cells.get("path"), cells.get(column)
        if not path or not group:
            raise CheckpointError(f"{table}, line {number} lacks a path or its {column}", found=quote("\t".join(row)))
        if path in groups:
            raise CheckpointError(f"{table}, line {number}: {quote(path)} occurs twice")
        groups[path] = group
    require_files(table, groups)
    return {table.parent / path: group for path, group in groups.items()}, column


def read_rows(table: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a table, UTF-8 text, that are not empty: their numbers from 1, and their cells.

    Raises:
        NotFoundError: it does not exist.
        CheckpointError: it cannot be read.
    """
    if not table.is_file():
        raise NotFoundError(f"there is no file or folder {table}", found=nearest(str(table)))
    try:
        lines = table.read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{table} cannot be read as a table, UTF-8 text: {error}") from error
    return [
        (number, [cell.strip() for cell in line.split("\t")]) for number, line in enumerate(lines, 1) if line.strip()
    ]


def require_files(table: Path, paths: Collection[str]) -> None:
    """Refuse a table that names files which do not exist where it lies.

    Raises:
        NotFoundError: it does.
    """
    missing = [path for path in paths if not (table.parent / path).is_file()]
    if missing:
        raise NotFoundError(
            f"{table}: {len(missing)} of {len(paths)} files do not exist, first {quote(missing[0])}",
            hint="paths are from the folder of the table",
        )
