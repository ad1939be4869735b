"""Finds the models among a pickled file's dictionaries, and describes what else is there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.numpy_arrays import ArrayTensor, read_array
from speechft_merge.checkpoints.pickle_data import Inert, Symbol, bytes_of, name_of
from speechft_merge.checkpoints.torch_tensors import OddTensor, TensorView
from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_KEY = 80
"""Characters of a key that are shown."""
MAX_DEPTH = 6
"""How deep a state dict may be; Lightning and fairseq put it at depth 1."""

MAX_CONTAINERS = 100_000
"""Dictionaries, lists and objects that are looked at; a training checkpoint has some thousands."""
MAX_BESIDE = 16
"""Dictionaries beside the model's that are kept."""
LEAST_SIZE = 0.01
"""Share of the model's parameters that another dictionary must have to be kept."""

_OPTIMIZERS = re.compile(r".*(optimizer|scheduler|scaler).*|optim|amp", re.IGNORECASE)
"""Keys of what is no model."""

_PREFERRED = ("state_dict", "model_state_dict", "model", "model_weight", "Upstream", "module", "net")
"""Keys under which training code keeps the model, the usual ones first; they decide where sizes do not."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """The tensors of a model as the pickle has them."""

    path: tuple[str, ...]
    tensors: dict[str, TensorView | ArrayTensor]
    odd: dict[str, OddTensor]
    others: dict[str, str]

    @property
    def parameters(self) -> int:
        """Elements of all its tensors."""
        return sum(math.prod(view.shape) for view in self.tensors.values())


def find_state_dicts(root: Any, name: str, known: tuple[str, ...] | None = None) -> list[StateDict]:
    """Find the dictionary with the most parameters, on a tie the one under the more usual key; then those beside it.

    Args:
        root: what the pickle holds.
        name: what to call the file in messages.
        known: where it is, if that is known; a head may have more parameters than the encoder.

    Raises:
        CheckpointError: there is none, or the file is a whole pickled module.
    """
    found = list(_search((), root, set()))
    if not found:
        raise CheckpointError(f"{name} holds no state dict: {_explain(root)}")
    best = max(found, key=lambda one: (one.path == known, one.parameters, -_rank(one.path), -len(one.path)))
    beside = [one for one in found if one is not best and one.parameters >= LEAST_SIZE * best.parameters]
    return [replace(one, others=_describe_others(root, one.path)) for one in (best, *beside[:MAX_BESIDE])]


def _search(path: tuple[str, ...], value: Any, seen: set[int]) -> Iterator[StateDict]:
    """Yield every dictionary that holds tensors, but for an optimizer's; `seen` has what was looked at."""
    if id(value) in seen or len(path) > MAX_DEPTH or len(seen) >= MAX_CONTAINERS:
        return
    seen.add(id(value))
    tensors: dict[str, TensorView | ArrayTensor] = {}
    odd: dict[str, OddTensor] = {}
    for key, item in _entries(value):
        tensor = item if isinstance(item, TensorView) else read_array(item)
        if tensor is not None and isinstance(key, str):
            tensors[key] = tensor
        elif isinstance(item, OddTensor) and isinstance(key, str):
            odd[key] = item
        elif isinstance(item, (dict, list, tuple, Inert)) and not _OPTIMIZERS.fullmatch(str(key)):
            yield from _search((*path, str(key)), item, seen)
    if tensors:
        yield StateDict(path, tensors, odd, {})


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield what a container holds, by key or position: also a subclass of dict, whose code is not run.

    What an object keeps in its attributes is not looked at: a pickled module has its tensors there, without names.
    """
    match value:
        case dict():
            pairs: Iterable[tuple[Any, Any]] = value.items()
        case list() | tuple():
            pairs = enumerate(value)
        case Inert(items=[(_, _), *_]):
            pairs = (item for item in value.items if isinstance(item, tuple) and len(item) == 2)
        case Inert(arguments=(dict(inner), *_)):
            pairs = inner.items()
        case _:
            return
    for key, item in pairs:
        if isinstance(key, (str, int)):
            yield key, item
        elif (text := bytes_of(key)) is not None:
            yield text.decode(errors="replace"), item


def _rank(path: tuple[str, ...]) -> int:
    last = path[-1] if path else ""
    return _PREFERRED.index(last) if last in _PREFERRED else len(_PREFERRED)


def _explain(root: Any) -> str:
    if isinstance(root, Inert):
        return (
            f"it is a pickled {root} object, which cannot be rebuilt without running its code; "
            "load it where it was made and save its state_dict()"
        )
    if isinstance(root, dict):
        entries = [f"{shorten(key)!r}: {describe(item)}" for key, item in list(root.items())[:8]]
        return "its entries are " + ", ".join(entries)
    return f"it is {describe(root)}"


def _describe_others(root: Any, chosen: tuple[str, ...]) -> dict[str, str]:
    """Describe each entry beside the state dict, along its path."""
    others: dict[str, str] = {}
    told: dict[int, str] = {}
    prefix, value = "", root
    for step in chosen:
        entries = {str(key): item for key, item in _entries(value)}
        for key, item in entries.items():
            if key != step:
                if id(item) not in told:  # one value may have many names
                    told[id(item)] = describe(item)
                others[prefix + shorten(key)] = told[id(item)]
        prefix, value = f"{prefix}{shorten(step)}.", entries[step]
    return others


def shorten(key: Any) -> str:
    """Return a key of a dictionary, cut to `MAX_KEY` characters."""
    text = key if isinstance(key, str) else describe(key)
    return text if len(text) <= MAX_KEY else text[:MAX_KEY] + "..."


def describe(value: Any) -> str:
    """Describe a value of a pickle in a few words, never at length."""
    match value:
        case TensorView():
            return f"tensor {list(value.shape)}"
        case OddTensor():
            return f"tensor ({value.reason})"
        case Inert():
            return f"{value} (not rebuilt)"
        case Symbol():
            return name_of(value)
        case dict():
            tensors = sum(isinstance(item, TensorView) for item in value.values())
            return f"{tensors} tensors" if tensors else f"dict of {len(value)}"
        case list() | tuple():
            return f"{type(value).__name__} of {len(value)}"
        case bool() | int() | float() | None:
            return str(value)[:40]
        case str():
            return f"text of {len(value)} characters" if len(value) > 40 else repr(value)
    return type(value).__name__
