"""What the user asked of a merge: parsed and validated once, written into the manifest, readable from a file again."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import NotFoundError, UsageError
from speechft_merge.recipe.rules import AlphaRule, parse_alpha, parse_rule

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_ALPHA = 0.25
"""Speech-FT's own (Lin et al. 2026): three quarters pre-trained."""

DTYPES = ("keep", "float32", "float16", "bfloat16")
FORMATS = ("auto", "safetensors", "s3prl", "fairseq")
_KEYS = ("alpha", "layer_alpha", "weights", "dtype", "format", "keep_head", "extrapolate")


@dataclass(frozen=True, slots=True)
class Recipe:
    """merged = base + alpha * weighted mean of (finetuned - base)."""

    alpha: float = DEFAULT_ALPHA
    rules: tuple[AlphaRule, ...] = ()
    """Alphas of some tensors; later rules win."""
    weights: tuple[float, ...] = ()
    """One for each fine-tune, normalised to sum 1; empty: equal weights."""
    dtype: str = "keep"
    format: str = "auto"
    """What is written; `auto` is what the base is."""
    keep_head: bool = False
    """Write the fine-tuned class, its head and config, rather than the base's."""
    extrapolate: bool = False
    """Allow alphas outside of [0, 1]."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
        if self.format not in FORMATS:
            raise UsageError(f"format {self.format!r} is unknown; expected one of {', '.join(FORMATS)}")
        for alpha in (self.alpha, *(value for rule in self.rules for value in (rule.start, rule.stop))):
            if not math.isfinite(alpha):
                raise UsageError(f"alpha must be finite, got {alpha}")
            if not 0 <= alpha <= 1 and not self.extrapolate:
                raise UsageError(
                    f"alpha {alpha:g} lies outside 0 (the base) to 1 (the fine-tune); say --extrapolate if it is meant"
                )
        for weight in self.weights:
            if not math.isfinite(weight) or weight <= 0:
                raise UsageError(f"the weight of a fine-tune must be a positive number, got {weight:g}")

    def normalised_weights(self, count: int) -> tuple[float, ...]:
        """Weights of `count` fine-tunes that sum to 1.

        Raises:
            UsageError: there are weights, but not as many as fine-tunes.
        """
        if self.weights and len(self.weights) != count:
            raise UsageError(f"{len(self.weights)} weights for {count} fine-tuned models; give one each, or none")
        weights = [weight / max(self.weights) for weight in self.weights] or [1.0] * count
        return tuple(weight / math.fsum(weights) for weight in weights)

    def to_json(self) -> dict[str, Any]:
        """The recipe as a recipe file has it."""
        return {
            "alpha": self.alpha,
            "layer_alpha": [str(rule) for rule in self.rules],
            "weights": list(self.weights),
            "dtype": self.dtype,
            "format": self.format,
            "keep_head": self.keep_head,
            "extrapolate": self.extrapolate,
        }


def read_recipe(path: Path) -> Recipe:
    """A recipe from a YAML file, or from the manifest of an earlier merge.

    Raises:
        NotFoundError: the file cannot be read.
        UsageError: it is not YAML, or holds what no recipe has.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise NotFoundError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"the recipe {path} is not valid YAML: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("recipe"), dict):
        content = content["recipe"]
    if not isinstance(content, dict) or not content.keys() <= set(_KEYS):
        odd = ", ".join(map(str, content.keys() - set(_KEYS))) if isinstance(content, dict) else type(content).__name__
        raise UsageError(f"the recipe {path} holds {odd}; expected a table with some of {', '.join(_KEYS)}")
    return _parse(content, path)


def _parse(content: dict[str, Any], path: Path) -> Recipe:
    rules, weights = content.get("layer_alpha", []), content.get("weights", [])
    if isinstance(rules, dict):
        rules = [f"{selector}={alpha}" for selector, alpha in rules.items()]
    if not isinstance(rules, list) or not isinstance(weights, list):
        raise UsageError(f"the recipe {path}: layer_alpha and weights are lists")
    flags = {key: content[key] for key in ("keep_head", "extrapolate") if key in content}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UsageError(f"the recipe {path}: keep_head and extrapolate are true or false")
    return Recipe(
        alpha=parse_alpha(str(content.get("alpha", DEFAULT_ALPHA))),
        rules=tuple(parse_rule(str(rule)) for rule in rules),
        weights=tuple(parse_alpha(str(weight)) for weight in weights),
        dtype=str(content.get("dtype", "keep")),
        format=str(content.get("format", "auto")),
        **flags,
    )


def override(recipe: Recipe, **given: Any) -> Recipe:
    """The recipe with what was given on top; None and empty values were not given, rules come after its own."""
    changes = {key: value for key, value in given.items() if value is not None and value is not False and value != ()}
    assert changes.keys() <= {field.name for field in fields(recipe)}
    if "rules" in changes:
        changes["rules"] = (*recipe.rules, *changes["rules"])
    return replace(recipe, **changes)
