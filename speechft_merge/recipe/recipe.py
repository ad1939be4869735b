"""Defines the recipe, what is mixed and how: validated once, and written to the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import QUOTED, UsageError, quote
from speechft_merge.recipe.alpha import DEFAULT_ALPHAS, check_alpha, parse_alpha, parse_number
from speechft_merge.recipe.rules import MOST, AlphaRule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DTYPES = ("keep", "float32", "float16", "bfloat16")
FORMATS = ("auto", "safetensors", "s3prl", "fairseq")
LARGEST = 1e9
"""Of the weight of a fine-tune."""
_BY_METHOD: Any = object()
"""The alpha of a recipe that gives none."""


def _key(default: Any, parse: Callable[[Any], Any]) -> Any:
    """Declare a key of a recipe: its default, and how any given value becomes one of the field."""
    return field(default=default, metadata={"parse": parse})


def _parse_rules(value: Any) -> tuple[AlphaRule, ...]:
    if isinstance(value, dict):
        value = [f"{text_of(selector)}={text_of(alpha)}" for selector, alpha in value.items()]
    if len(_listed(value)) > MOST:
        raise UsageError(f"a recipe of {len(value)} rules, at most {MOST} are allowed")
    return tuple(parse_rule(text_of(rule)) for rule in _listed(value))


def text_of(value: Any) -> str:
    """Return a value of YAML as text.

    Raises:
        UsageError: it is a number of thousands of digits.
    """
    try:
        return str(value)
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"a recipe holds a number that is too large: {error}") from error


def _parse_weights(value: Any) -> tuple[float, ...]:
    what = "the weight of a fine-tune"
    return tuple(w if isinstance(w, float) else parse_number(text_of(w), what, "2") for w in _listed(value))


def _parse_lora_alpha(value: Any) -> float | None:
    return None if value is None else parse_number(text_of(value), "alpha of LoRA", "16")


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
    """What is mixed: merged = base + alpha * what the method makes of all (finetuned - base).

    A field is a key of a recipe file and an option of the command line under the same name.
    """

    alpha: float = _key(_BY_METHOD, lambda value: parse_alpha(text_of(value)))
    """By default the method's own, see `DEFAULT_ALPHAS`."""
    layer_alpha: tuple[AlphaRule, ...] = _key((), _parse_rules)
    """Alphas of some layers or tensors; later rules win."""
    weight: tuple[float, ...] = _key((), _parse_weights)
    """One for each fine-tune: of a mean normalised to sum 1, of task arithmetic as they are, of any sign. Empty: equal
    weights, in task arithmetic of 1."""
    dtype: str = _key("keep", text_of)
    format: str = _key("auto", text_of)
    """Kind of file to write; `auto` follows the base."""
    keep_head: bool = _key(False, _parse_flag)
    """Write the fine-tuned class, its head and config, rather than the base's."""
    strip: bool = _key(False, _parse_flag)
    """Leave optimizer states, schedulers and copies of the weights out of a pickled file."""
    extrapolate: bool = _key(False, _parse_flag)
    """Allow alphas outside of [0, 1]."""
    method: str = _key("mean", text_of)
    """What the fine-tunes' differences from the base become: their mean, `task-arithmetic` their sum by weights of any
    sign, `model-stock` their mean by a ratio that is estimated for each tensor."""
    lora_alpha: float | None = _key(None, _parse_lora_alpha)
    """Alpha of the LoRA in fine-tunes that have no settings beside them."""

    def __post_init__(self) -> None:
        if text_of(self.method) not in DEFAULT_ALPHAS:
            raise UsageError(
                f"method {quote(text_of(self.method))} is unknown", hint=f"use one of {', '.join(DEFAULT_ALPHAS)}"
            )
        if self.alpha is _BY_METHOD:
            object.__setattr__(self, "alpha", DEFAULT_ALPHAS[self.method])
        for key in fields(self):
            object.__setattr__(self, key.name, key.metadata["parse"](getattr(self, key.name)))
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {quote(self.dtype)} is unknown", hint=f"use one of {', '.join(DTYPES)}")
        if self.format not in FORMATS:
            raise UsageError(f"format {quote(self.format)} is unknown", hint=f"use one of {', '.join(FORMATS)}")
        for alpha in (self.alpha, *(value for rule in self.layer_alpha for value in (rule.start, rule.stop))):
            check_alpha(alpha, self.extrapolate)
        for weight in self.weight:
            self._check_weight(weight)

    def _check_weight(self, weight: float) -> None:
        if self.method == "model-stock":
            raise UsageError("model-stock takes no weights", hint="leave them out: its ratio is estimated")
        if self.method == "mean" and not (math.isfinite(weight) and weight > 0):
            raise UsageError(
                f"the weight of a fine-tune in a mean must be a positive number, got {weight:g}",
                hint="one of any sign is for --method task-arithmetic",
            )
        if self.method != "mean" and (not abs(weight) < LARGEST or weight == 0):
            raise UsageError(
                f"the weight of a fine-tune must be a number other than 0, below {LARGEST:g}, got {weight:g}"
            )

    def coefficients(self, count: int) -> tuple[float, ...]:
        """Return how much of each of `count` differences the method adds up; of a mean they sum to 1.

        Raises:
            UsageError: there are weights, but not as many as fine-tunes, or for the mean of one; or too few fine-tunes.
        """
        if self.method == "model-stock" and count < 2:
            raise UsageError(
                "model-stock estimates its ratio from two or more fine-tunes; there is one",
                hint="name the others, or leave --method out",
            )
        if self.weight and len(self.weight) != count:
            raise UsageError(f"{len(self.weight)} weights for {count} fine-tuned models", hint="give one each, or none")
        if self.method == "task-arithmetic":
            return self.weight or (1.0,) * count
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

    def to_words(self) -> list[str]:
        """Return the options of a command line that give this recipe."""
        words = ["--alpha", repr(self.alpha)]
        for key in fields(self):
            value, option = getattr(self, key.name), f"--{key.name.replace('_', '-')}"
            if key.name == "alpha" or value == key.default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [option] if value is True else [word for each in values for word in (option, str(each))]
        return words

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


def override(recipe: Recipe, **given: Any) -> Recipe:
    """Return the recipe with what was given on top; None and empty values were not given, rules come after its own.

    An alpha that is but the default of its method goes with the method.
    """
    changes = {key: value for key, value in given.items() if value is not None and value is not False and value != ()}
    changes["layer_alpha"] = (*recipe.layer_alpha, *changes.get("layer_alpha", ()))
    if changes.get("method", recipe.method) != recipe.method and recipe.alpha == DEFAULT_ALPHAS[recipe.method]:
        changes.setdefault("alpha", _BY_METHOD)
    return replace(recipe, **changes)
