"""Writes a pickle anew without some entries of its dictionaries: the same opcodes for the rest, and nothing executed.

A pickle is read into a tree: each opcode that makes an object with the objects that it takes, and with the opcodes that
fill it later. What is left of the tree is written again. References between objects (the memo) are numbered afresh.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints.pickle_data import MAX_STEPS
from speechft_merge.errors import CheckpointError, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_FILLING = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
"""Opcodes that change the object below what they take."""
_OF_PAIRS = frozenset({"DICT", "SETITEM", "SETITEMS"})
_UNUSUAL = frozenset({"POP", "POP_MARK", "DUP", "PERSID", "EXT1", "EXT2", "EXT4"})
"""Opcodes that change the stack itself, which is no tree then: of tuples that hold themselves, or written by hand."""


class Stripped(NamedTuple):
    """A pickle without some entries."""

    content: bytes
    storages: frozenset[str]
    """Keys of torch's storages that it still names."""


class _Node:
    """An opcode with what it takes from the stack, and what fills the object that it makes."""

    __slots__ = ("filling", "marked", "name", "raw", "taken", "value")

    def __init__(self, name: str, raw: bytes, value: object, taken: list[_Node], marked: bool) -> None:
        self.name, self.raw, self.value, self.taken, self.marked = name, raw, value, taken, marked
        self.filling: list[_Node] = []

    def steps(self) -> list[_Node | bytes]:
        """Return what makes the object, or fills one, in order."""
        if self.marked and self.name in _FILLING and not self.taken:
            return []
        return [*([pickle.MARK] if self.marked else []), *self.taken, self.raw]


def strip_pickle(content: bytes, name: str, paths: Iterable[tuple[str, ...]]) -> Stripped:
    """Return a pickle without some entries of its dictionaries.

    Args:
        content: one that `read_pickle` has read.
        name: what to call the file in messages.
        paths: keys that lead to the entries.

    Raises:
        CheckpointError: an entry is not one of a dictionary, or the pickle is of an unusual form.
    """
    try:
        protocol, root = _read(content, name)
        for path in paths:
            if not _remove(root, path):
                raise _unusual(name, f"{quote('.'.join(path))} is no entry of a plain dictionary")
        return Stripped(protocol + b"".join(_write(root, name)) + pickle.STOP, frozenset(_storages(root)))
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _unusual(name, str(error)) from error


def _unusual(name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: nothing can be left out of its pickle ({why})", hint="leave out --strip, or save less with torch"
    )


def _read(content: bytes, name: str) -> tuple[bytes, _Node]:
    """Return the opcode of the protocol, if there is one, and the tree."""
    opcodes = list(islice(pickletools.genops(io.BytesIO(content)), MAX_STEPS + 1))
    if len(opcodes) > MAX_STEPS:
        raise _unusual(name, f"it has more than {MAX_STEPS} opcodes")
    starts = [int(start or 0) for _, _, start in opcodes]
    protocol, stack, memo = b"", list[_Node | None](), dict[Any, _Node | None]()
    for (opcode, argument, _), start, stop in zip(opcodes, starts, [*starts[1:], len(content)], strict=True):
        known, raw = opcode.name, content[start:stop]
        if known == "PROTO":
            protocol = raw
        elif known == "MARK":
            stack.append(None)
        elif known in _PUTS:
            memo[len(memo) if known == "MEMOIZE" else argument] = stack[-1]
        elif known in _GETS:
            stack.append(memo[argument])
        elif known in _UNUSUAL:
            raise _unusual(name, f"opcode {known}")
        elif known not in ("FRAME", "STOP"):
            marked = pickletools.markobject in opcode.stack_before
            count = len(opcode.stack_before) - (known in _FILLING)
            node = _Node(known, raw, argument, _take(stack, None if marked else count), marked)
            if known not in _FILLING:
                stack.append(node)
            elif (target := stack[-1]) is not None:
                target.filling.append(node)
    (root,) = stack
    if root is None:
        raise ValueError("it ends with a mark")
    return protocol, root


def _take(stack: list[_Node | None], count: int | None) -> list[_Node]:
    """Take some nodes from the stack; with None those after the last mark, and the mark."""
    if count is None:
        first = next((i + 1 for i in reversed(range(len(stack))) if stack[i] is None), 0)
    else:
        first = len(stack) - count
    if first < (count is None):
        raise ValueError("the stack is too short")
    taken = [node for node in stack[first:] if node is not None]
    if len(taken) != len(stack) - first:
        raise ValueError("a mark in place of a value")
    del stack[first - (count is None) :]
    return taken


def _pairs(node: _Node) -> Iterator[tuple[_Node, int]]:
    """Yield the opcodes that make or fill a dictionary, and the position of each key in what they take."""
    for holder in (node, *node.filling):
        if holder.name in _OF_PAIRS:
            yield from ((holder, place) for place in range(0, len(holder.taken) - 1, 2))


def _remove(root: _Node, path: tuple[str, ...]) -> bool:
    """Remove the entry of that path; return whether there was one."""
    node = root
    for depth, step in enumerate(path):
        found = [(holder, at) for holder, at in _pairs(node) if _is_key(holder.taken[at], step)]
        if not found:
            return False
        if depth < len(path) - 1:
            holder, at = found[-1]  # a later entry replaces an earlier one
            node = holder.taken[at + 1]
    for holder, at in reversed(found):
        if holder.name == "SETITEM":
            node.filling.remove(holder)
        else:
            del holder.taken[at : at + 2]
    return True


def _is_key(node: _Node, step: str) -> bool:
    return isinstance(node.value, (str, int)) and not node.taken and str(node.value) == step


def _write(root: _Node, name: str) -> Iterator[bytes]:
    """Yield the opcodes of a tree, each node once and then by reference."""
    counts = Counter(id(node) for node in _references(root))
    memo: dict[int, int] = {}
    begun: set[int] = set()
    left: list[_Node | bytes | tuple[_Node]] = [root]
    while left:
        item = left.pop()
        if isinstance(item, bytes):
            yield item
        elif isinstance(item, tuple):  # a node that is made now
            (node,) = item
            if counts[id(node)] > 1:
                memo[id(node)] = len(memo)
                yield _numbered(pickle.BINPUT, pickle.LONG_BINPUT, memo[id(node)])
            left += reversed([step for filling in node.filling for step in filling.steps()])
        elif id(item) in memo:
            yield _numbered(pickle.BINGET, pickle.LONG_BINGET, memo[id(item)])
        elif id(item) in begun:
            raise _unusual(name, "an object that holds itself")
        else:
            begun.add(id(item))
            left += reversed([*item.steps(), (item,)])


def _references(root: _Node) -> Iterator[_Node]:
    """Yield every node as often as the tree refers to it."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        yield node
        if id(node) not in seen:
            seen.add(id(node))
            left += node.taken
            left += (taken for filling in node.filling for taken in filling.taken)


def _storages(root: _Node) -> Iterator[str]:
    """Yield the keys of the storages that a tree names: ('storage', type, key, location, count)."""
    for node in _references(root):
        if node.name == "BINPERSID":
            key = node.taken[0].taken[2].value
            if not isinstance(key, str):
                raise ValueError("a storage has no key")
            yield key


def _numbered(short: bytes, long: bytes, number: int) -> bytes:
    return short + bytes([number]) if number < 256 else long + number.to_bytes(4, "little")
