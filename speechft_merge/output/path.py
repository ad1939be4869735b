"""Decides where the output goes: its default name, and whether it may and can be there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.errors import OutputError, UsageError, WriteError
from speechft_merge.sources.reference import WEIGHT_SUFFIXES, local_path, parse_reference, weight_suffix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speechft_merge.recipe import Recipe


GROWTH = 100
"""How many times larger than its inputs an output may be before it must be asked for."""


def default_name(finetuned: str, recipe: Recipe) -> str:
    """Return a directory name that says what is in it: the fine-tune's name and the alpha."""
    return f"{stem_of(finetuned)}-merged-{'layerwise' if recipe.layer_alpha else format(recipe.alpha, 'g')}"


def stem_of(reference: str) -> str:
    """Return what the outputs of a model are named after: the last part of its name."""
    found = parse_reference(reference)
    path = found if isinstance(found, Path) else Path(found.path or found.repo)
    suffix = weight_suffix(path.name)
    return (path.name.removesuffix(suffix) if suffix else path.resolve().name) or "model"


def require_path(output: str | Path, references: Iterable[str]) -> Path:
    """Return the path to write to, links resolved.

    Raises:
        UsageError: it is, holds or lies in an input, or is the current directory.
        OutputError: no file can have this name.
    """
    if Path(output).name.endswith(WEIGHT_SUFFIXES):
        raise UsageError(f"the output {output} must be a directory: it gets the weights, the config and a manifest")
    try:
        target = Path(output).expanduser().resolve()
        target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", error)
        raise OutputError(
            f"{str(output)[:200]} cannot be the name of an output: {why}", hint="choose another name (-o)"
        ) from error
    if _holds(target, Path.cwd()):
        raise UsageError(f"the output {output} is or holds the current directory", hint="name a new directory (-o)")
    for path in filter(None, map(local_path, references)):
        source = path.resolve()
        if _holds(target, source) or _holds(source, target):
            raise UsageError(
                f"the output {output} and the input {path} overlap", hint="choose another output directory (-o)"
            )
    return target


def _holds(folder: Path, path: Path) -> bool:
    """Return whether a folder is or holds a path, by whatever name: a file system may not tell `a` from `A`."""
    places = (path, *path.parents)
    return folder in places or any(_are_one(folder, place) for place in places)


def _are_one(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is not there
        return False


def free_space(output: Path) -> tuple[Path, int | None]:
    """Return the nearest existing folder of an output, and the bytes free there; None where that cannot be told."""
    parent = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
    try:
        return parent, shutil.disk_usage(parent).free
    except OSError:
        return parent, None


def require_modest(size: int, inputs: int, most: int | None) -> None:
    """Refuse an output that is larger than was asked for, or far larger than its inputs.

    Args:
        size: bytes of the output's weights.
        inputs: bytes of all input files.
        most: most bytes that were asked for; None for `GROWTH` times the inputs.

    Raises:
        OutputError: it is.
    """
    if most is not None and size > most:
        raise OutputError(f"the output would have {size:,} bytes, at most {most:,} are allowed (--max-output)")
    if most is None and size > GROWTH * inputs:
        raise OutputError(
            f"the output would have {size:,} bytes, its inputs have {inputs:,}: many tensors are views of the same few "
            "numbers",
            hint=f"pass --max-output {size} if that is meant",
        )


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
