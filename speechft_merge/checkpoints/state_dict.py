"""Finds the models among a pickled file's dictionaries, and describes what else is there."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.kinds import MODULE
from speechft_merge.checkpoints.numpy_arrays import ArrayTensor, read_array
from speechft_merge.checkpoints.pickle_data import Inert, Symbol, encode, name_of, raw_of
from speechft_merge.checkpoints.torch_tensors import OddTensor, TensorView
from speechft_merge.errors import CheckpointError, amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_KEY = 80
"""Characters of a key that are shown."""
MAX_DEPTH = 6
"""How deep a state dict may be; Lightning and fairseq put it at depth 1."""

MAX_CONTAINERS = 100_000
"""Dictionaries, lists and objects that are looked at; a training checkpoint has some thousands."""
MAX_BYTES_KEY = 1000
"""Most bytes of a key that is no text: each is decoded, and many may be the same."""
MAX_BESIDE = 16
"""Dictionaries beside the model's that are kept."""
LEAST_SIZE = 0.01
"""Share of the model's parameters that another dictionary must have to be kept."""
LEAST_MODULE = 0.5
"""Likewise a module that cannot be read to be told; that of a loss is smaller."""

LEAST_COPY = 0.5
"""Share of the model's parameters that another dictionary must have, in tensors alike, to be a copy of it."""

_OPTIMIZERS = re.compile(r".*(optimizer|scheduler|scaler).*|optim|amp", re.IGNORECASE)
"""Keys of what is no model."""

_SCHEDULERS = re.compile(r".*scheduler.*", re.IGNORECASE)

_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PREFERRED = ("state_dict", "model_state_dict", "model", "model_weight", "Upstream", "module", "net")
"""Keys under which training code keeps the model, the usual ones first; they decide where sizes do not."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """The tensors of a model as the pickle has them."""

    path: tuple[str, ...]
    tensors: dict[str, TensorView | ArrayTensor]
    odd: dict[str, OddTensor]
    others: dict[str, str]
    modules: tuple[str, ...] = ()
    """Paths of whole pickled modules beside it, which cannot be read and are about as large."""
    stale: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Path -> what is there that belongs to these very weights: an optimizer's state, a copy of them."""

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
    modules: dict[str, Inert] = {}
    optimizers: dict[tuple[str, ...], Any] = {}
    found = list(_search((), root, set(), modules, optimizers))
    if not found:
        hint = MODULE.hint_for(name) if isinstance(root, Inert) or modules else None
        path = next(iter(modules), "").split(".")
        if hint and all(map(_PLAIN_KEY.fullmatch, path)):  # it is a command that users copy
            hint = hint.replace(".state_dict()", "".join(f"[{step!r}]" for step in path) + ".state_dict()")
        raise CheckpointError(f"{name} holds no state dict: {_explain(root)}", hint=hint)
    best = max(found, key=lambda one: (one.path == known, one.parameters, -_rank(one.path), -len(one.path)))
    seen: set[int] = set()  # one for all: a file may name a module again and again
    sizes = {path: _size(module, seen) for path, module in modules.items()}
    whole = tuple(path for path, size in sizes.items() if size >= LEAST_MODULE * best.parameters)
    beside = [one for one in found if one is not best and one.parameters >= LEAST_SIZE * best.parameters]
    kept = [best, *beside[:MAX_BESIDE]]
    training = _of_training(optimizers)
    return [
        replace(one, others=_describe_others(root, one.path), modules=whole, stale=training | _copies(one, kept))
        for one in kept
    ]


def _of_training(found: dict[tuple[str, ...], Any]) -> dict[tuple[str, ...], str]:
    """Return which of these are states of optimizers, and of schedulers beside them; others are settings or empty."""
    seen: set[int] = set()
    states = {path: "an optimizer's state" for path, value in found.items() if _holds_tensors(value, seen)}
    beside = {path[:-1] for path in states}
    schedulers = [path for path in found if path[:-1] in beside and _SCHEDULERS.fullmatch(path[-1])]
    return dict.fromkeys(schedulers, "a scheduler's state") | states


def _copies(state: StateDict, others: Sequence[StateDict]) -> dict[tuple[str, ...], str]:
    """Return the paths of those that are copies of a state dict, such as its average, and do not share its bytes."""
    mine, views = _kinds(state.tensors), set(state.tensors.values())
    found = {}
    for other in (other for other in others if other is not state):
        theirs = _kinds({name: view for name, view in other.tensors.items() if view not in views})
        alike = sum(math.prod(shape) * count for (_, shape), count in (mine & theirs).items())
        if alike >= max(1, LEAST_COPY * state.parameters):
            found[other.path] = "another copy of the weights"
    return found


def _kinds(tensors: Mapping[str, TensorView | ArrayTensor]) -> Counter[tuple[str, tuple[int, ...]]]:
    """Count tensors by the last words of their names and by shape: copies may have wrappers in their names."""
    return Counter((".".join(name.rsplit(".", 2)[-2:]), view.shape) for name, view in tensors.items())


def _search(
    path: tuple[str, ...],
    value: Any,
    seen: set[int],
    modules: dict[str, Inert],
    optimizers: dict[tuple[str, ...], Any],
) -> Iterator[StateDict]:
    """Yield every dictionary that holds tensors, but for an optimizer's.

    `modules` gets whole modules and `optimizers` what is called as their states are, by their paths; `seen` has what
    was looked at.
    """
    container = _container(value)
    if isinstance(value, Inert) and _is_module(value):
        modules[".".join(map(shorten, path))] = value
    if container is None or id(container) in seen or len(path) > MAX_DEPTH or len(seen) >= MAX_CONTAINERS:
        return
    seen.add(id(container))  # not the object around it: many may hold the same
    tensors: dict[str, TensorView | ArrayTensor] = {}
    odd: dict[str, OddTensor] = {}
    for key, item in _entries(container):
        tensor = item if isinstance(item, TensorView) else read_array(item)
        if tensor is not None and isinstance(key, str):
            tensors[key] = tensor
        elif isinstance(item, OddTensor) and isinstance(key, str):
            odd[key] = item
        elif isinstance(item, (dict, list, tuple, Inert)):
            if isinstance(key, str) and _OPTIMIZERS.fullmatch(key):
                optimizers[*path, key] = item
            elif item and len(seen) < MAX_CONTAINERS:  # a file may hold millions of empty ones
                yield from _search((*path, str(key)), item, seen, modules, optimizers)
    if tensors:
        yield StateDict(path, tensors, odd, {})


def _holds_tensors(value: Any, seen: set[int]) -> bool:
    """Return whether there is a tensor anywhere in a value; `seen` has what was looked at."""
    left = [value]
    while left and len(seen) < MAX_CONTAINERS:
        item = left.pop()
        if isinstance(item, TensorView):
            return True
        container = _container(item)
        if container is not None and id(container) not in seen:
            seen.add(id(container))
            left += container.values() if isinstance(container, dict) else container
    return False


def _container(value: Any) -> dict[Any, Any] | Sequence[Any] | None:
    """Return the container that a value is; of an object what it was filled with, made of, or has as attributes.

    So a subclass of dict or list, a named tuple and a dataclass are read, and no code of theirs is run. But for a
    module: its attributes hold the tensors of one layer, under names that are not those of its state dict.
    """
    match value:
        case dict() | list() | tuple():
            return value
        case Inert(items=[_, *_]):
            return value.items
        case Inert(arguments=(dict(only),)):
            return only
        case Inert(state=dict(attributes)) if attributes:
            return None if _is_module(value) else attributes
        case Inert(arguments=(_, *_)):
            return value.arguments
    return None


def _is_module(value: Inert) -> bool:
    return isinstance(value.state, dict) and "_parameters" in value.state


def _size(module: Inert, seen: set[int]) -> int:
    """Return the parameters of a module and of those in it; `seen` has what was counted."""
    total, left = 0, [module]
    while left and len(seen) < MAX_CONTAINERS:
        attributes = left.pop().state
        if not isinstance(attributes, dict) or id(attributes) in seen:
            continue
        seen.add(id(attributes))
        parameters, inner = (
            [*found.values()] if isinstance(found := attributes.get(key), dict) else []
            for key in ("_parameters", "_modules")
        )
        total += sum(math.prod(item.shape) for item in parameters if isinstance(item, TensorView))
        left += [item for item in inner if isinstance(item, Inert)]
    return total


def _entries(container: dict[Any, Any] | Sequence[Any]) -> Iterator[tuple[str | int, Any]]:
    """Yield what a container holds, by key or position; a list of pairs is read as the dictionary that it lists."""
    if isinstance(container, dict):
        yield from ((name, item) for key, item in container.items() if (name := _key(key)) is not None)
        return
    if all(map(_is_pair, container)):
        pairs = [(_key(key), item) for key, item in container]
        keys = {key for key, _ in pairs}
        if None not in keys and len(keys) == len(pairs):
            yield from pairs  # type: ignore[misc]
            return
    yield from enumerate(container)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2


def _key(key: Any) -> str | int | None:
    """Return a key that can stand in a path: text, also as bytes, or a number; large ones can be chosen to collide."""
    if isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 60):
        return key
    raw = raw_of(key)
    return None if raw is None or len(raw) > MAX_BYTES_KEY else encode(raw).decode(errors="replace")


def _rank(path: tuple[str, ...]) -> int:
    last = path[-1] if path else ""
    return _PREFERRED.index(last) if last in _PREFERRED else len(_PREFERRED)


def _explain(root: Any) -> str:
    if isinstance(root, Inert):
        return f"it is a pickled {root} object, which cannot be rebuilt without running its code"
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
        entries = {str(key): item for key, item in _entries(_container(value) or ())}
        for key, item in entries.items():
            if key != step:
                if id(item) not in told:  # one value may have many names
                    told[id(item)] = describe(item)
                others[prefix + shorten(key)] = told[id(item)]
        prefix, value = f"{prefix}{shorten(step)}.", entries.get(step)  # 0 and "0" are one step of a path
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
            return amount(tensors, "tensor") if tensors else f"dict of {len(value)}"
        case list() | tuple():
            return f"{type(value).__name__} of {len(value)}"
        case bool() | int() | float() | None:
            return str(value)[:40]
        case str():
            return f"text of {len(value)} characters" if len(value) > 40 else repr(value)
    return type(value).__name__
