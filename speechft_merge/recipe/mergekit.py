"""Reads a merge as mergekit's YAML describes it, where it is base + a sum of coefficients times differences.

A weight may be a number, a gradient over the blocks (what is outside of them takes its start), or a number for each of
some filters, parts of names. Where all weights change alike over these places, that is a recipe with layer_alpha;
anything else is refused by name.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.errors import UsageError, quote
from speechft_merge.recipe.alpha import parse_number
from speechft_merge.recipe.recipe import LARGEST, Recipe, text_of
from speechft_merge.recipe.rules import AlphaRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MARK = "merge_method"
"""The key that tells a merge of mergekit's."""

_PARAMETERS = {
    "linear": ("weight", "normalize"),
    "task_arithmetic": ("weight", "normalize", "lambda", "int8_mask"),  # the last has no effect in mergekit, too
    "model_stock": ("filter_wise",),
}
"""Method -> what it takes."""
_KEYS = (MARK, "models", "base_model", "parameters", "dtype", "out_dtype")
_FILTER = re.compile(r"[\w.-]{1,200}")
_FIRST, _MIDDLE, _LAST = "the first block", "the middle", "the last block"
_NEAR = 1e-9
"""Relative difference below which coefficients are the same but for rounding."""


class _Setting(NamedTuple):
    """A parameter wherever it has a value of its own."""

    first: float
    last: float
    """At the ends of a gradient over the blocks."""
    filters: tuple[tuple[str, float], ...] = ()
    """Part of a name -> value there; the first that fits wins."""

    def at(self, place: str) -> float:
        if place == _LAST:
            return self.last
        return next((value for words, value in self.filters if words == place), self.first)


def read_merge(content: Mapping[str, Any]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe, and the models: the base, then the fine-tunes in the order of their weights.

    Raises:
        UsageError: it is not a merge of mergekit's, or one that a recipe cannot express.
    """
    method = text_of(content[MARK])
    if method not in _PARAMETERS:
        raise UsageError(
            f"mergekit's method {quote(method)} is not supported",
            hint=f"supported are {', '.join(_PARAMETERS)}; run mergekit for the others",
        )
    _require_known(content, _KEYS, "a merge of mergekit's")
    shared = _table(content.get("parameters"), _PARAMETERS[method], method)
    own = _models(content.get("models"), method)
    base = _base(content.get("base_model"), own, method)
    finetuned = [model for model in own if model != base]
    if not finetuned:
        raise UsageError("models names no fine-tune", hint="give the base and one or more fine-tunes of it")
    dtype = content.get("out_dtype") or content.get("dtype") or "keep"
    if method == "model_stock":
        if shared.get("filter_wise"):
            raise UsageError("model_stock with filter_wise is not supported", hint="leave filter_wise out")
        return Recipe(method="model-stock", dtype=dtype), (base, *finetuned)
    weighed = [base, *finetuned] if method == "linear" else finetuned
    settings = [_setting("weight", model, own.get(model, {}), shared) for model in weighed]
    settings.append(_setting("lambda", "parameters", shared, {"lambda": 1}))
    normalize = shared.get("normalize", method == "linear")
    if not isinstance(normalize, bool):
        raise UsageError("normalize must be true or false")
    places = {place: _coefficients(method, normalize, values, place) for place, values in _places(settings)}
    moving = [i for i in range(len(finetuned)) if any(found[i] for found in places.values())]
    if not moving:
        raise UsageError("the weight of every fine-tune is 0: the merge is the base", hint="give one another weight")
    parts = {place: [found[i] for i in moving] for place, found in places.items()}
    return _recipe(parts, dtype), (base, *(finetuned[i] for i in moving))


def _require_known(content: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    odd = [str(key) for key in content if key not in known]
    if odd:
        raise UsageError(
            f"{what} has {', '.join(map(quote, odd[:5]))}, which is not supported",
            hint=f"supported are {', '.join(known) or 'none'}; run mergekit for the others",
        )


def _table(value: Any, known: Iterable[str], what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"the parameters of {what} are no table", hint="write parameters: {weight: 1}")
    _require_known(value, known, f"{what}'s parameters")
    return value


def _models(listed: Any, method: str) -> dict[str, dict[str, Any]]:
    """Return the models in their order, and the parameters of each."""
    if not isinstance(listed, list) or not listed:
        raise UsageError("models must be a list", hint="write models: [{model: PATH, parameters: {weight: 1}}, ...]")
    known = [name for name in _PARAMETERS[method] if name == "weight"]
    found: dict[str, dict[str, Any]] = {}
    for entry in listed:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise UsageError("an entry of models has no model", hint="write {model: PATH, parameters: {weight: 1}}")
        _require_known(entry, ("model", "parameters"), "an entry of models")
        if entry["model"] in found:
            raise UsageError(f"models names {quote(entry['model'])} twice", hint="name it once, with one weight")
        found[entry["model"]] = _table(entry.get("parameters"), known, quote(entry["model"]))
    return found


def _base(named: Any, own: Mapping[str, Any], method: str) -> str:
    if isinstance(named, str):
        return named
    if named is not None:
        raise UsageError("base_model is no name of a model", hint="write base_model: PATH")
    if method != "linear":
        raise UsageError(f"{method} needs a base_model", hint="write base_model: PATH")
    return next(iter(own))


def _setting(name: str, model: str, *scopes: Mapping[str, Any]) -> _Setting:
    """Return what a parameter is: the first of its conditions that fits a tensor counts, and those of a model first."""
    filters: list[tuple[str, float]] = []
    for words, value in itertools.chain.from_iterable(_conditions(scope[name]) for scope in scopes if name in scope):
        ends = _gradient(value, name)
        if words is None:
            return _Setting(*ends, tuple(filters))
        if ends[0] != ends[1]:
            raise UsageError(f"a gradient within the filter {quote(words)} is not supported", hint="give a number")
        filters.append((words, ends[0]))
    where = " for what no filter names" if filters else ""
    raise UsageError(f"{quote(model)} has no {name}{where}", hint=f"give it one, or parameters: {{{name}: 1}} for all")


def _conditions(value: Any) -> Iterator[tuple[str | None, Any]]:
    for entry in value if isinstance(value, list) and any(isinstance(one, dict) for one in value) else [value]:
        if not isinstance(entry, dict):
            yield None, entry
            continue
        _require_known(entry, ("filter", "value"), "a condition")
        words = entry.get("filter")
        if words is not None and words != "*" and not (isinstance(words, str) and _FILTER.fullmatch(words)):
            raise UsageError(f"the filter {quote(text_of(words))} is no part of a name", hint="write one such as mlp")
        yield None if words == "*" else words, entry.get("value")


def _gradient(value: Any, name: str) -> tuple[float, float]:
    listed = value if isinstance(value, list) else [value]
    if not listed or any(isinstance(one, (bool, dict, list)) or one is None for one in listed):
        raise UsageError(f"{name} is no number", hint="write a number, or a list of two: at the first and last block")
    numbers = [parse_number(text_of(one), name, "0.5") for one in listed]
    if not all(abs(number) < LARGEST for number in numbers):
        raise UsageError(f"{name} must be below {LARGEST:g}")
    if len(set(numbers)) > 1 and len(numbers) > 2:
        raise UsageError(
            f"a gradient of {len(numbers)} values is not supported",
            hint="give two, for the first and the last block, or --layer-alpha for each range of blocks",
        )
    return numbers[0], numbers[-1]


def _places(settings: Sequence[_Setting]) -> Iterator[tuple[str, list[float]]]:
    """Yield each place that any setting tells apart, and the values there."""
    named = {tuple(words for words, _ in setting.filters) for setting in settings if setting.filters}
    varied = any(setting.first != setting.last for setting in settings if not setting.filters)
    if len(named) > 1 or (named and varied):
        raise UsageError("the weights have different filters", hint="give every model the same ones, in one order")
    ends = [setting.last for setting in settings] != [setting.first for setting in settings]
    for place in (_FIRST, *[_LAST] * ends, *dict.fromkeys(words for found in named for words in found)):
        yield place, [setting.at(place) for setting in settings]
    if ends:
        middle = [setting.first / 2 + setting.last / 2 for setting in settings]
        yield _MIDDLE, middle


def _coefficients(method: str, normalize: bool, values: Sequence[float], place: str) -> list[float]:
    """Return how much of each fine-tune's difference from the base goes in.

    Args:
        method: mergekit's name.
        normalize: whether weights are divided by their sum.
        values: the weights, of a linear merge the base's first, and lambda.
        place: where that is.
    """
    *weights, scale = values
    total = math.fsum(weights)
    if method == "task_arithmetic":
        by = total if normalize and abs(total) >= 1e-8 else 1.0
        return [scale * weight / by for weight in weights]
    if not normalize and not math.isclose(total, 1, rel_tol=_NEAR):
        raise UsageError(
            f"the weights of a linear merge without normalize sum to {total:g}, which would scale the models",
            hint="let them sum to 1, or leave normalize out",
        )
    if abs(total) < 1e-8:
        raise UsageError(f"the weights sum to 0 at {place}, and are to be normalised", hint="change one of them")
    return [weight / total if normalize else weight for weight in weights[1:]]


def _recipe(parts: Mapping[str, Sequence[float]], dtype: str) -> Recipe:
    """Return the recipe whose alphas scale one set of weights to the coefficients of every place."""
    weights = max(parts.values(), key=lambda found: max(map(abs, found)))
    if len(weights) == 1 and len(parts) > 1:
        weights = [1.0]
    largest = max(range(len(weights)), key=lambda i: abs(weights[i]))
    alphas = {place: found[largest] / weights[largest] for place, found in parts.items()}
    near = _NEAR * abs(weights[largest])
    first, last = alphas[_FIRST], alphas.get(_LAST, alphas[_FIRST])
    straight = math.isclose(alphas.pop(_MIDDLE, first / 2 + last / 2), first / 2 + last / 2, abs_tol=_NEAR)
    alike = all(
        abs(value - alphas[place] * weight) <= near
        for place, found in parts.items()
        if place in alphas
        for value, weight in zip(found, weights, strict=True)
    )
    if not straight or not alike or 0 in weights:
        raise UsageError(
            "the models' weights change from place to place, each in its own way, which is not supported",
            hint="give them the same gradient or filters, or merge one fine-tune at a time",
        )
    ramp = [AlphaRule("layers", first, last)] if first != last else []
    named = [place for place in alphas if place not in (_FIRST, _LAST)]
    rules = [AlphaRule(f"**.*{place}*.**", alphas[place], alphas[place]) for place in reversed(named)]
    beyond = any(not 0 <= alpha <= 1 for alpha in alphas.values())
    return Recipe(first, (*ramp, *rules), tuple(weights), dtype, extrapolate=beyond, method="task-arithmetic")
