"""Decides where the output goes: its default name, and whether it may and can be there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.errors import OutputError, UsageError, WriteError
from speechft_merge.sources.reference import WEIGHT_SUFFIXES, local_path, parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speechft_merge.recipe import Recipe


def default_name(finetuned: str, recipe: Recipe) -> str:
    """Return a directory name that says what is in it: the fine-tune's name and the alpha."""
    found = parse_reference(finetuned)
    path = found if isinstance(found, Path) else Path(found.path or found.repo)
    stem = path.stem if path.suffix in WEIGHT_SUFFIXES else path.resolve().name
    return f"{stem or 'model'}-merged-{'layerwise' if recipe.layer_alpha else format(recipe.alpha, 'g')}"


def require_path(output: str | Path, references: Iterable[str]) -> Path:
    """Return the path to write to, links resolved.

    Raises:
        UsageError: it is, holds or lies in an input, or is the current directory.
        OutputError: no file can have this name.
    """
    if Path(output).suffix in WEIGHT_SUFFIXES:
        raise UsageError(f"the output {output} must be a directory: it gets the weights, the config and a manifest")
    try:
        target = Path(output).expanduser().resolve()
        target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", error)
        raise OutputError(
            f"{str(output)[:200]} cannot be the name of an output: {why}", hint="choose another name (-o)"
        ) from error
    if target == Path.cwd() or target in Path.cwd().parents:
        raise UsageError(f"the output {output} is or holds the current directory", hint="name a new directory (-o)")
    for path in filter(None, map(local_path, references)):
        source = path.resolve()
        if target == source or target in source.parents or (source.is_dir() and source in target.parents):
            raise UsageError(
                f"the output {output} and the input {path} overlap", hint="choose another output directory (-o)"
            )
    return target


def free_space(output: Path) -> tuple[Path, int | None]:
    """Return the nearest existing folder of an output, and the bytes free there; None where that cannot be told."""
    parent = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
    try:
        return parent, shutil.disk_usage(parent).free
    except OSError:
        return parent, None


def require_space(output: Path, needed: int) -> None:
    """Refuse a merge that cannot fit.

    Raises:
        WriteError: the file system has less room than the output needs.
    """
    parent, free = free_space(output)
    if free is not None and free < needed:
        raise WriteError(
            f"the output needs {needed:,} bytes, {parent} has {free:,} free",
            hint="free some space, or choose another output (-o)",
        )
