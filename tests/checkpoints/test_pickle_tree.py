"""A pickle without some entries holds all others as before; one that is no tree is refused, and none takes long."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.checkpoints.pickle_tree import strip_pickle
from speechft_merge.errors import CheckpointError

PROTOCOLS = st.integers(0, pickle.HIGHEST_PROTOCOL)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


def stripped(value: object, *paths: tuple[str, ...], protocol: int = 2) -> Any:
    return pickle.loads(strip_pickle(pickle.dumps(value, protocol), "x", paths).content)


@settings(max_examples=40)
@given(PLAIN, PROTOCOLS)
def test_without_entries_to_leave_out_all_is_as_before(value: object, protocol: int) -> None:
    assert stripped(value, protocol=protocol) == value


@settings(max_examples=40)
@given(PLAIN, PLAIN, PROTOCOLS)
def test_an_entry_is_left_out_and_nothing_else(kept: object, left: object, protocol: int) -> None:
    value = {"a": left, "b": [kept, left], 7: {"c": left, "d": kept}}
    assert stripped(value, ("a",), ("7", "c"), protocol=protocol) == {"b": [kept, left], 7: {"d": kept}}


def test_what_is_shared_stays_shared_also_where_the_first_mention_is_left_out() -> None:
    shared = ["x" * 300, OrderedDict(a=1)]
    found = stripped({"gone": [shared, shared[0]], "one": shared, "two": {"of": shared}}, ("gone",))
    assert found["one"] == shared
    assert found["one"] is found["two"]["of"]


def test_a_dictionary_that_holds_itself_is_no_hindrance() -> None:
    value: dict[str, Any] = {"gone": 1}
    value["self"] = value
    found = stripped(value, ("gone",))
    assert list(found) == ["self"]
    assert found["self"] is found


@pytest.mark.parametrize("count", [1, 2, 1001])  # SETITEM, SETITEMS, several of these
def test_any_entry_of_many_can_be_left_out(count: int) -> None:
    value = {str(i): i for i in range(count)}
    for key in {"0", str(count // 2), str(count - 1)}:
        assert stripped(value, (key,)) == {name: i for name, i in value.items() if name != key}


def test_of_an_entry_that_is_given_twice_both_are_left_out() -> None:
    content = b"}(X\x01\0\0\0aK\x01X\x01\0\0\0aK\x02X\x01\0\0\0bK\x03u."
    assert pickle.loads(content) == {"a": 2, "b": 3}
    assert pickle.loads(strip_pickle(content, "x", [("a",)]).content) == {"b": 3}


def test_only_the_storages_that_are_still_named_are_told() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", "FloatStorage", value.decode(), "cpu", 1) if isinstance(value, bytes) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": [b"0", b"1"], "b": b"1", "c": [b"2"]})
    assert strip_pickle(stream.getvalue(), "x", [("a",)]).storages == {"1", "2"}
    assert strip_pickle(stream.getvalue(), "x", []).storages == {"0", "1", "2"}


def holding_itself(first: bool) -> bytes:
    inner: list[Any] = []
    value = (inner,)
    inner.append(value)
    return pickle.dumps({"a": inner if first else 1, "b": value}, 2)


REFUSED = {
    "no such entry": (pickle.dumps({"b": 1}, 2), "'a' is no entry of a plain dictionary"),
    "an entry of an object": (pickle.dumps([{"a": 1}], 2), "'a' is no entry"),
    "a tuple that holds itself": (holding_itself(first=False), "nothing can be left out"),
    "a tuple that holds itself, by a list": (holding_itself(first=True), "an object that holds itself"),
    "POP": (b"K\x01K\x020.", "opcode POP"),
    "a mark too few": (b"}K\x01u.", "nothing can be left out"),
    "a mark too many": (b"}K\x01(s.", "nothing can be left out"),
    "a storage without a key": (b"}X\x01\0\0\0a)Qs.", "nothing can be left out"),
    "too short": (b"a.", "nothing can be left out"),
    "no end": (b"}", "nothing can be left out"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_tree_is_refused(kind: str) -> None:
    content, told = REFUSED[kind]
    with pytest.raises(CheckpointError, match=told) as refused:
        strip_pickle(content, "x", [("a",)] if kind != "a storage without a key" else [])
    assert "leave out --strip" in str(refused.value)


def test_neither_depth_nor_references_cost_more_than_their_bytes() -> None:
    deep = b"}X\x01\0\0\0aK\x01s" + b"\x85" * 50_000 + b"."
    assert strip_pickle(deep, "x", []).content == deep
    doubled = b"K\0" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200)) + b"."
    assert strip_pickle(doubled, "x", []).content == doubled


@given(st.binary(max_size=60))
def test_no_bytes_end_in_a_traceback(content: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        strip_pickle(content, "x", [])
