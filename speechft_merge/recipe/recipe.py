"""Defines the recipe, what is mixed and how: validated once, written to the manifest, readable from a file."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.json_text import MAX_TEXT, parse_json
from speechft_merge.errors import QUOTED, CheckpointError, NotFoundError, UsageError, quote
from speechft_merge.recipe.alpha import DEFAULT_ALPHA, check_alpha, parse_alpha, parse_number
from speechft_merge.recipe.rules import MOST, AlphaRule, parse_rule
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

DTYPES = ("keep", "float32", "float16", "bfloat16")
MAX_YAML = 256 << 10
"""Most characters of one in YAML, which takes 10 s a megabyte to parse."""
FORMATS = ("auto", "safetensors", "s3prl", "fairseq")


def _key(default: Any, parse: Callable[[Any], Any]) -> Any:
    """Declare a key of a recipe: its default, and how any given value becomes one of the field."""
    return field(default=default, metadata={"parse": parse})


def _parse_rules(value: Any) -> tuple[AlphaRule, ...]:
    if isinstance(value, dict):
        value = [f"{_text(selector)}={_text(alpha)}" for selector, alpha in value.items()]
    if len(_listed(value)) > MOST:
        raise UsageError(f"a recipe of {len(value)} rules, at most {MOST} are allowed")
    return tuple(parse_rule(_text(rule)) for rule in _listed(value))


def _text(value: Any) -> str:
    try:
        return str(value)
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"a recipe holds a number that is too large: {error}") from error


def _parse_weights(value: Any) -> tuple[float, ...]:
    what = "the weight of a fine-tune"
    return tuple(w if isinstance(w, float) else parse_number(_text(w), what, "2") for w in _listed(value))


def _parse_lora_alpha(value: Any) -> float | None:
    return value if value is None or isinstance(value, float) else parse_number(_text(value), "alpha of LoRA", "16")


def _listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise UsageError("layer_alpha and weight must be lists")
    return value


def _parse_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError("keep_head, strip and extrapolate must be true or false")
    return value


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is mixed: merged = base + alpha * weighted mean of (finetuned - base).

    A field is a key of a recipe file and an option of the command line under the same name.
    """

    alpha: float = _key(DEFAULT_ALPHA, lambda value: parse_alpha(_text(value)))
    layer_alpha: tuple[AlphaRule, ...] = _key((), _parse_rules)
    """Alphas of some layers or tensors; later rules win."""
    weight: tuple[float, ...] = _key((), _parse_weights)
    """One for each fine-tune, normalised to sum 1; empty: equal weights."""
    dtype: str = _key("keep", _text)
    format: str = _key("auto", _text)
    """Kind of file to write; `auto` follows the base."""
    keep_head: bool = _key(False, _parse_flag)
    """Write the fine-tuned class, its head and config, rather than the base's."""
    strip: bool = _key(False, _parse_flag)
    """Leave optimizer states, schedulers and copies of the weights out of a pickled file."""
    extrapolate: bool = _key(False, _parse_flag)
    """Allow alphas outside of [0, 1]."""
    lora_alpha: float | None = _key(None, _parse_lora_alpha)
    """Alpha of the LoRA in fine-tunes that have no settings beside them."""

    def __post_init__(self) -> None:
        for key in fields(self):
            object.__setattr__(self, key.name, key.metadata["parse"](getattr(self, key.name)))
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {quote(self.dtype)} is unknown", hint=f"use one of {', '.join(DTYPES)}")
        if self.format not in FORMATS:
            raise UsageError(f"format {quote(self.format)} is unknown", hint=f"use one of {', '.join(FORMATS)}")
        for alpha in (self.alpha, *(value for rule in self.layer_alpha for value in (rule.start, rule.stop))):
            check_alpha(alpha, self.extrapolate)
        for weight in self.weight:
            if not math.isfinite(weight) or weight <= 0:
                raise UsageError(f"the weight of a fine-tune must be a positive number, got {weight:g}")

    def normalised_weights(self, count: int) -> tuple[float, ...]:
        """Return weights of `count` fine-tunes that sum to 1.

        Raises:
            UsageError: there are weights, but not as many as fine-tunes, or for one fine-tune alone.
        """
        if self.weight and len(self.weight) != count:
            raise UsageError(f"{len(self.weight)} weights for {count} fine-tuned models", hint="give one each, or none")
        if self.weight and count == 1:
            raise UsageError(
                "--weight has no effect with one fine-tune",
                hint="leave it out (in a recipe, weight): how much of one goes in is --alpha; or name the others",
            )
        weights = [weight / max(self.weight) for weight in self.weight] or [1.0] * count
        return tuple(weight / math.fsum(weights) for weight in weights)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a recipe file has it."""
        content = {key.name: getattr(self, key.name) for key in fields(self)}
        return content | {"layer_alpha": [str(rule) for rule in self.layer_alpha], "weight": list(self.weight)}

    @classmethod
    def from_json(cls, content: object) -> Recipe:
        """Make a recipe from a table with some of its keys.

        Raises:
            UsageError: it is not a table, or has an unknown key or an invalid value.
        """
        keys = [key.name for key in fields(cls)]
        if isinstance(content, dict) and "weights" in content:  # as manifests of version 0.1 have it
            content = {"weight": content["weights"], **{key: content[key] for key in content if key != "weights"}}
        if not isinstance(content, dict) or not content.keys() <= set(keys):
            odd = (
                ", ".join(str(key)[:QUOTED] for key in content.keys() - set(keys))
                if isinstance(content, dict)
                else type(content).__name__
            )
            raise UsageError(f"a recipe holds {odd}", hint=f"give a table with some of {', '.join(keys)}")
        return cls(**content)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file, or from the manifest of an earlier merge.

    Raises:
        NotFoundError: the file cannot be read.
        UsageError: it is not YAML, or not a recipe.
    """
    content = _parse(_read_text(path), path)
    of_manifest = isinstance(content, dict) and isinstance(content.get("recipe"), dict)
    try:
        recipe = Recipe.from_json(content["recipe"] if of_manifest else content)
    except UsageError as error:
        raise error.within(f"the recipe {path}") from error
    # a single fine-tune could have a weight in earlier versions; it changed nothing
    return replace(recipe, weight=()) if of_manifest and len(recipe.weight) == 1 else recipe


def _read_text(path: Path) -> str:
    try:
        with LocalFile(path) as file:
            if file.size > MAX_TEXT:
                raise UsageError(f"the recipe {path} has {file.size} bytes, at most {MAX_TEXT} are allowed")
            return file.read(0, file.size).decode()
    except NotFoundError as error:
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "it is not a regular file"
        raise NotFoundError(f"cannot read the recipe {path}: {why}") from error
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


def override(recipe: Recipe, **given: Any) -> Recipe:
    """Return the recipe with what was given on top; None and empty values were not given, rules come after its own."""
    changes = {key: value for key, value in given.items() if value is not None and value is not False and value != ()}
    changes["layer_alpha"] = (*recipe.layer_alpha, *changes.get("layer_alpha", ()))
    return replace(recipe, **changes)
