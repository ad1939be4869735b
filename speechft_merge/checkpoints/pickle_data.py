"""Reads a pickle as data: a small stack machine in which nothing can be called and nothing is imported.

A pickle is a program for a stack machine. Python's own machine looks up any name the program asks for and calls it.
This one knows no names: a class or function is a `Symbol`, a call is looked up in a table that the caller gives (the
few constructors of tensors), and every other call or object becomes an `Inert` record of what was asked. So
`argparse.Namespace`, omegaconf nodes and optimizer states are read for what they hold, and `os.system` is a string.

Opcodes: the Python library's `pickletools`, which also decodes their arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_STEPS = 2_000_000
"""Opcodes of one pickle, some 40,000 tensors' worth: bounds time and memory that a hostile file can take."""


class Symbol(NamedTuple):
    """A class or function that the pickle names; it is never looked up."""

    module: str
    name: str


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """An object of a class that is not in the table: what would have been called, with what, and its state."""

    symbol: object
    arguments: tuple[Any, ...] = ()
    state: object = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return name_of(self.symbol)


def name_of(value: object) -> str:
    """Return a short name for messages, never a whole text: a small pickle can hold one that takes years to print."""
    return f"{value.module}.{value.name}"[:80] if isinstance(value, Symbol) else type(value).__name__


def raw_of(value: object) -> bytes | str | None:
    """Return the bytes that a value is, or None; protocols before 3 have them as text in latin-1, returned as it is.

    Nothing is copied: a few opcodes can name the same megabytes again and again.
    """
    match value:
        case bytes() | str():
            return value
        case Inert(symbol=Symbol("_codecs", "encode"), arguments=(str(text), "latin1")):
            return text
        case Inert(symbol=Symbol("__builtin__" | "builtins", "bytes"), arguments=()):
            return b""
    return None


def encode(raw: bytes | str) -> bytes:
    """Return what `raw_of` returned as bytes."""
    return raw if isinstance(raw, bytes) else raw.encode("latin-1", errors="replace")


class _Mark:
    """The stack machine's MARK."""


_MARK = _Mark()

_LITERALS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME"})


def read_pickle(
    stream: IO[bytes],
    name: str,
    constructors: Mapping[Symbol, Callable[..., object]],
    persistent: Callable[[object], object],
) -> Any:
    """Read the object that one pickle describes; the stream is left after it.

    Args:
        stream: a file positioned at the pickle.
        name: what to call the file in messages.
        constructors: what may be called, by the name under which the pickle asks for it.
        persistent: makes an object of a persistent id (torch's storages).

    Raises:
        CheckpointError: the pickle is malformed, too long, or a constructor refuses its arguments.
    """
    import pickletools  # not for safetensors

    machine = _Machine(name, constructors, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.pop()
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise error if error.message.startswith(name) else error.within(name) from error
        raise CheckpointError(f"{name}: the pickle in it is malformed ({type(error).__name__}: {error})") from error


class _Machine:
    def __init__(
        self, name: str, constructors: Mapping[Symbol, Callable[..., object]], persistent: Callable[[object], object]
    ) -> None:
        self._name = name
        self._constructors = constructors
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._budget = MAX_STEPS

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a value was expected, found a mark")
        return value

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        self._spend(1)
        if opcode in _LITERALS:
            literal = bytes(argument) if isinstance(argument, bytearray) else argument
            self._stack.append(literal if _is_modest(literal) else Inert(None))
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            if len(self._stack) < count:
                raise ValueError("the stack is too short for a tuple")
            self._stack[-count:] = [tuple(self._stack[-count:])]
        elif opcode not in _IGNORED:
            handler = getattr(self, "_" + opcode.lower(), None)
            if handler is None:
                raise ValueError(f"opcode {opcode} has no place in a checkpoint")
            handler(argument)

    def _spend(self, steps: int) -> None:
        self._budget -= steps
        if self._budget < 0:
            raise CheckpointError(f"{self._name}: its pickle takes more than {MAX_STEPS} steps: not a checkpoint")

    def _since_mark(self) -> list[Any]:
        for position in range(len(self._stack) - 1, -1, -1):
            if self._stack[position] is _MARK:
                items = self._stack[position + 1 :]
                del self._stack[position:]
                return items
        raise ValueError("a mark is missing")

    # the stack and the memo
    def _stop(self, _: None) -> None: ...

    def _mark(self, _: None) -> None:
        self._stack.append(_MARK)

    def _pop(self, _: None) -> None:
        self._stack.pop()

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _dup(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    _binget = _long_binget = _get

    # containers
    def _empty_list(self, _: None) -> None:
        self._stack.append([])

    def _list(self, _: None) -> None:
        self._stack.append(self._since_mark())

    def _append(self, _: None) -> None:
        value = self.pop()
        _extend(self._stack[-1], [value])

    def _appends(self, _: None) -> None:
        values = self._since_mark()
        _extend(self._stack[-1], values)

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _empty_dict(self, _: None) -> None:
        self._stack.append({})

    def _dict(self, _: None) -> None:
        values = self._since_mark()
        self._stack.append({})
        _set_items(self._stack[-1], values)

    def _setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        _set_items(self._stack[-1], [key, value])

    def _setitems(self, _: None) -> None:
        values = self._since_mark()
        _set_items(self._stack[-1], values)

    def _empty_set(self, _: None) -> None:
        self._stack.append([])  # a set's items need no hash here: a list holds them as well

    _additems = _appends

    def _frozenset(self, _: None) -> None:
        self._stack.append(self._since_mark())

    # objects
    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Symbol(module, name))

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a class is named by two strings")
        self._stack.append(Symbol(module, name))

    def _reduce(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        self._stack.append(self._call(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        keywords, arguments, cls = self.pop(), self.pop(), self.pop()
        self._stack.append(Inert(cls, (arguments, keywords)) if keywords else self._call(cls, arguments))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._call(Symbol(module, name), tuple(self._since_mark())))

    def _obj(self, _: None) -> None:
        cls, *arguments = self._since_mark()
        self._stack.append(self._call(cls, tuple(arguments)))

    def _call(self, function: object, arguments: Any) -> object:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments of a call must be a tuple")
        constructor = self._constructors.get(function) if isinstance(function, Symbol) else None
        if constructor is None:
            return Inert(function, arguments)
        self._charge(arguments)
        return constructor(*arguments)

    def _charge(self, arguments: tuple[Any, ...]) -> None:
        """Count what a constructor may look at: a few opcodes can hand it the same long tuple again and again."""
        inner = [item for item in arguments if isinstance(item, (list, tuple, dict))]
        self._spend(len(arguments) + sum(map(len, inner)))
        self._spend(sum(len(item) for outer in inner if isinstance(outer, tuple) for item in outer if _is_long(item)))

    def _build(self, _: None) -> None:
        state = self.pop()
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state

    def _persid(self, argument: str) -> None:
        self._stack.append(self._persistent(argument))

    def _binpersid(self, _: None) -> None:
        identity = self.pop()
        self._charge((identity,))
        self._stack.append(self._persistent(identity))


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, Inert):
        target.items.extend(values)
    elif isinstance(target, list):
        target.extend(values)
    else:
        raise TypeError(f"items are added to a {type(target).__name__}")


def _set_items(target: Any, values: list[Any]) -> None:
    if len(values) % 2:
        raise ValueError("a key lacks its value")
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if isinstance(target, Inert):
        target.items.extend(pairs)
    elif isinstance(target, dict):
        target.update((_hashable(key), value) for key, value in pairs)
    else:
        raise TypeError(f"items are set in a {type(target).__name__}")


def _hashable(key: object) -> object:
    """Return a key as it is if plain, else wrapped: hashing a deeply nested tuple would overflow the C stack, and large
    numbers can be chosen to collide."""
    number = isinstance(key, (int, float)) and abs(key) < 1 << 60
    plain = number or key is None or isinstance(key, (str, bytes, Inert))
    return key if plain else Inert(None, (key,))


def _is_modest(value: object) -> bool:
    """Return whether a checkpoint may need this number; one with thousands of digits cannot even be printed."""
    return not isinstance(value, int) or value.bit_length() <= 128


def _is_long(value: object) -> bool:
    return isinstance(value, (list, tuple, dict))
