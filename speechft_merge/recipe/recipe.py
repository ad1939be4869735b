"""Defines the recipe, what is mixed and how: validated once, and written to the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from speechft_merge.arguments import listed
from speechft_merge.choices import DTYPE_ALIASES, DTYPES, FORMATS, METHODS, choose
from speechft_merge.errors import QUOTED, UsageError, amount, quote
from speechft_merge.recipe.alpha import DEFAULT_ALPHAS, check_alpha, parse_alpha, parse_number
from speechft_merge.recipe.rules import MOST, AlphaRule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Rules = Sequence[AlphaRule | str] | Mapping[str, float | str] | str

LARGEST = 1e9
"""Of the weight of a fine-tune."""
_BY_METHOD: Any = type("ByMethod", (), {"__repr__": lambda self: "by the method"})()
"""The alpha of a recipe that gives none."""


def _key(default: Any, parse: Callable[[Any], Any]) -> Any:
    """Declare a key of a recipe: its default, and how any given value becomes one of the field."""
    return field(default=default, metadata={"parse": parse})


def _parse_rules(value: Any) -> tuple[AlphaRule, ...]:
    if isinstance(value, dict):
        value = [f"{text_of(selector)}={text_of(alpha)}" for selector, alpha in value.items()]
    rules = listed(value)
    if len(rules) > MOST:
        raise UsageError(f"a recipe of {len(rules)} rules, at most {MOST} are allowed")
    return tuple(parse_rule(text_of(rule)) for rule in rules)


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
    return tuple(w if isinstance(w, float) else parse_number(text_of(w), what, "2") for w in listed(value))


def _parse_method(value: Any) -> str:
    return choose("method", text_of(value), METHODS)


def _parse_lora_alpha(value: Any) -> float | None:
    return None if value is None else parse_number(text_of(value), "alpha of LoRA", "16")


def _parse_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError("must be true or false", found=quote(value))
    return value


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is mixed: merged = base + alpha * what the method makes of all (finetuned - base).

    A field is a key of a recipe file and an option of the command line under the same name.

    Args:
        alpha: how much of that goes in; by default 0.25 for the mean, else 1 (see `DEFAULT_ALPHAS`).
        layer_alpha: alphas of some layers or tensors, as text: `"cnn=0"`, `"0-5=0.1"`, `"0-11=0.1:0.5"`; or a
            dictionary of selectors and alphas. Later ones win; `rules` has them parsed.
        weight: one for each fine-tune: of a mean normalised to sum 1, of task arithmetic as they are, of any sign.
            Empty: equal weights, in task arithmetic of 1.
        dtype: element type of the output: `keep` (the base's), `float32`, `float16` or `bfloat16`.
        format: kind of file to write: `auto` follows the base; `safetensors`, `s3prl` or `fairseq`.
        keep_head: write the fine-tuned class, its head and config, rather than the base's.
        strip: leave optimizer states, schedulers and copies of the weights out of a pickled file.
        extrapolate: allow alphas outside of [0, 1].
        method: what the fine-tunes' differences from the base become: their `mean`, by `task-arithmetic` their sum by
            weights of any sign, by `model-stock` their mean by a ratio that is estimated for each tensor.
        lora_alpha: alpha of the LoRA in fine-tunes that have no settings beside them.

    Raises:
        UsageError: a value is invalid.

    Example:
        >>> from speechft_merge import Recipe
        >>> Recipe(alpha=0.4, layer_alpha=["cnn=0", "0-5=0.1"]).to_json()["layer_alpha"]
        ['cnn=0.0', '0-5=0.1']
    """

    alpha: float = _key(_BY_METHOD, lambda value: parse_alpha(text_of(value)))
    layer_alpha: Rules = _key((), _parse_rules)  # noqa: RUF009
    weight: Sequence[float] = _key((), _parse_weights)
    dtype: str = _key("keep", lambda value: choose("dtype", text_of(value), DTYPES, DTYPE_ALIASES))
    format: str = _key("auto", lambda value: choose("format", text_of(value), FORMATS))
    keep_head: bool = _key(False, _parse_flag)
    strip: bool = _key(False, _parse_flag)
    extrapolate: bool = _key(False, _parse_flag)
    method: str = _key("mean", _parse_method)
    lora_alpha: float | None = _key(None, _parse_lora_alpha)

    def __post_init__(self) -> None:
        if self.alpha is _BY_METHOD:
            object.__setattr__(self, "alpha", DEFAULT_ALPHAS[_parse_method(self.method)])
        for key in fields(self):
            try:
                object.__setattr__(self, key.name, key.metadata["parse"](getattr(self, key.name)))
            except UsageError as error:
                if error.message.startswith(key.name):
                    raise
                raise error.within(key.name) from error
        for alpha in (self.alpha, *(value for rule in self.rules for value in (rule.start, rule.stop))):
            check_alpha(alpha, self.extrapolate)
        for weight in self.weight:
            self._check_weight(weight)

    @property
    def rules(self) -> tuple[AlphaRule, ...]:
        """The parsed `layer_alpha`."""
        return cast("tuple[AlphaRule, ...]", self.layer_alpha)

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
            raise UsageError(
                f"{amount(len(self.weight), 'weight')} for {amount(count, 'fine-tuned model')}",
                hint="give one each, or none",
            )
        if self.method == "task-arithmetic":
            return tuple(self.weight) or (1.0,) * count
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
        return content | {"layer_alpha": [str(rule) for rule in self.rules], "weight": list(self.weight)}

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
    changes["layer_alpha"] = (*recipe.rules, *changes.get("layer_alpha", ()))
    if changes.get("method", recipe.method) != recipe.method and recipe.alpha == DEFAULT_ALPHAS[recipe.method]:
        changes.setdefault("alpha", _BY_METHOD)
    return replace(recipe, **changes)
