"""Reads a recipe from a file: YAML with its keys, the manifest of an earlier merge, or a merge of mergekit's."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.arguments import path_of
from speechft_merge.checkpoints.json_text import MAX_TEXT, parse_json
from speechft_merge.errors import CheckpointError, NotFoundError, UsageError
from speechft_merge.recipe import mergekit
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.sources import LocalFile
from speechft_merge.sources.nearby import nearest

if TYPE_CHECKING:
    from pathlib import Path

    from speechft_merge.arguments import PathText

MAX_YAML = 256 << 10
"""Most characters of one in YAML, which takes 10 s a megabyte to parse."""


class RecipeFile(NamedTuple):
    """What a file says of a merge."""

    recipe: Recipe
    models: tuple[str, ...] = ()
    """Base and fine-tunes, which mergekit's files name; else empty."""


def read_recipe(path: PathText) -> Recipe:
    """Read a recipe from a file; see `read_recipe_file`, which returns the models of a merge of mergekit's as well.

    Raises:
        NotFoundError: the file cannot be read.
        UsageError: it is not YAML, or not a recipe.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from speechft_merge import read_recipe
        >>> file = Path(mkdtemp(), "recipe.yaml")
        >>> _ = file.write_text("{alpha: 0.4, layer_alpha: [cnn=0]}")
        >>> read_recipe(file).alpha
        0.4
    """
    return read_recipe_file(path_of(path, "path")).recipe


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe from a YAML file of ours or mergekit's, or from the manifest of an earlier merge.

    Raises:
        NotFoundError: the file cannot be read.
        UsageError: it is not YAML, or not a recipe.
    """
    content = _parse(_read_text(path), path)
    of_manifest = isinstance(content, dict) and isinstance(content.get("recipe"), dict)
    try:
        if isinstance(content, dict) and mergekit.MARK in content:
            return RecipeFile(*mergekit.read_merge(content))
        recipe = Recipe.from_json(content["recipe"] if of_manifest else content)
    except UsageError as error:
        raise error.within(f"the recipe {path}") from error
    # a single fine-tune could have a weight in earlier versions; it changed nothing
    without_effect = of_manifest and recipe.method == "mean" and len(recipe.weight) == 1
    return RecipeFile(replace(recipe, weight=()) if without_effect else recipe)


def _read_text(path: Path) -> str:
    try:
        with LocalFile(path) as file:
            if file.size > MAX_TEXT:
                raise UsageError(f"the recipe {path} has {file.size} bytes, at most {MAX_TEXT} are allowed")
            return file.read(0, file.size).decode()
    except NotFoundError as error:
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "it is not a regular file"
        raise NotFoundError(f"cannot read the recipe {path}: {why}", found=nearest(str(path))) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the recipe {path} is not valid YAML: {error}") from error


def _parse(text: str, path: Path) -> Any:
    """Return the content of a recipe. A manifest is JSON, which YAML is as well, and takes a hundredth of the time.

    References to other parts of the file are refused: ten lines of them make more values than memory holds.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UsageError(f"the recipe {path} refers to parts of itself (*name)", hint="write them out")
            return super().compose_node(parent, index)

    with contextlib.suppress(CheckpointError):
        return parse_json(text.encode(), str(path))
    if len(text) > MAX_YAML:
        raise UsageError(f"the recipe {path} has {len(text)} characters of YAML, at most {MAX_YAML} are allowed")
    try:
        return yaml.load(text, Loader)
    except UsageError:
        raise
    except Exception as error:  # a tag on what does not go with it may raise anything
        raise UsageError(f"the recipe {path} is not valid YAML: {error}") from error
