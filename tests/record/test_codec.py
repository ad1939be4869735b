"""Records and JSON: what was written is read again, and anything else is a ValueError, whatever it is."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.executor.drift import Drift
from speechft_merge.output.staging import JOURNAL, FinishedFile, _read_journal
from speechft_merge.record.codec import from_json
from speechft_merge.record.manifest import NAME, CompanionEntry, InputRecord, Manifest, OutputEntry, read_manifest
from speechft_merge.sources import HubOrigin

JOURNALS: Any = tuple[FinishedFile, ...]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FINITE | st.text()
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
PLAIN_NAMES = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}\Z")
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(), float: FINITE, str: st.text(), bool: st.booleans(), Any: DOCUMENTS, NoneType: st.none()
}  # fmt: skip


def written(record: Any) -> Any:
    """As it is after a way through a file."""
    plain = [asdict(one) for one in record] if isinstance(record, tuple) else asdict(record)
    return json.loads(json.dumps(plain))


def records(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that a record may have."""
    arguments = get_args(kind)
    if is_dataclass(kind):
        given = {name: records(hint) for name, hint in get_type_hints(kind).items()}
        names = {"file": PLAIN_NAMES} if kind in (OutputEntry, CompanionEntry) else {}
        return st.builds(kind, **(given | names))
    if get_origin(kind) is UnionType:
        return st.one_of(*map(records, arguments))
    if get_origin(kind) is tuple:
        return st.lists(records(arguments[0]), max_size=3).map(tuple)
    if get_origin(kind) is dict:
        return st.dictionaries(st.text(), records(arguments[1]), max_size=3)
    return PLAIN[kind]


@dataclass(frozen=True)
class Part:
    """A record in a record."""

    name: str


@dataclass(frozen=True)
class Whole:
    """A record with a field of every kind."""

    count: int
    share: float
    flag: bool
    word: str
    part: Part
    perhaps: Part | None
    parts: tuple[Part, ...]
    counts: dict[str, int]
    anything: dict[str, Any]


WHOLE = Whole(3, 0.5, True, "x", Part("a"), None, (Part("b"), Part("c")), {"d": 1}, {"e": [None, {"f": 1.5}]})
DOCUMENT: dict[str, Any] = {
    "count": 3, "share": 0.5, "flag": True, "word": "x", "part": {"name": "a"}, "perhaps": None,
    "parts": [{"name": "b"}, {"name": "c"}], "counts": {"d": 1}, "anything": {"e": [None, {"f": 1.5}]},
}  # fmt: skip


# What is written is read again.


def test_a_record_is_a_table_of_its_fields() -> None:
    assert written(WHOLE) == DOCUMENT
    assert from_json(Whole, DOCUMENT) == WHOLE


@pytest.mark.parametrize("kind", [Manifest, InputRecord, HubOrigin, JOURNALS, Whole], ids=str)
@given(data=st.data())
def test_any_record_is_read_as_it_was_written(kind: Any, data: st.DataObject) -> None:
    record = data.draw(records(kind))
    assert from_json(kind, written(record)) == record


@given(record=records(Manifest))
def test_a_manifest_is_read_from_its_folder_as_it_was_written(record: Manifest, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(record.encode())
    assert read_manifest(tmp_path) == record


@given(record=records(JOURNALS))
def test_a_journal_is_read_from_its_folder_as_it_was_written(record: tuple[FinishedFile, ...], tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text(json.dumps([asdict(one) for one in record]))
    assert _read_journal(tmp_path) == {found.entry.file: found for found in record}


@pytest.mark.parametrize("value", [0.1, 1e-310, -0.0, 1e300, 2.0])
def test_a_float_keeps_every_bit(value: float) -> None:
    (read,) = from_json(JOURNALS, json.loads(json.dumps([asdict(finished(value))])))
    assert math.copysign(1, read.drifts["t"].delta) == math.copysign(1, value)
    assert read == finished(value)


def finished(value: float) -> FinishedFile:
    return FinishedFile(OutputEntry("model.safetensors", 1, "0"), {"t": Drift(1.0, value, True)})


def test_a_whole_number_is_a_float_where_one_is_meant() -> None:
    share = from_json(Whole, DOCUMENT | {"share": 1}).share
    assert (share, type(share)) == (1.0, float)


def test_a_key_that_a_later_version_added_is_ignored() -> None:
    later = DOCUMENT | {"later": 1, "part": {"name": "a", "later": None}}
    assert from_json(Whole, later) == WHOLE


# Anything else is a ValueError.


@pytest.mark.parametrize("key", DOCUMENT)
def test_a_key_that_is_missing_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"Whole lacks {key}"):
        from_json(Whole, {name: value for name, value in DOCUMENT.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", None), ("count", "3"), ("count", 3.0), ("count", True), ("count", [3]),
        ("share", None), ("share", "0.5"), ("share", True), ("share", {}),
        ("flag", None), ("flag", 1), ("flag", "true"),
        ("word", None), ("word", 1), ("word", ["x"]),
        ("part", None), ("part", "a"), ("part", {}), ("part", [{"name": "a"}]), ("part", {"name": None}),
        ("perhaps", False), ("perhaps", {}), ("perhaps", {"name": 1}),
        ("parts", None), ("parts", {}), ("parts", "bc"), ("parts", [None]), ("parts", [{"name": "b"}, 1]),
        ("counts", None), ("counts", []), ("counts", {"d": "1"}), ("counts", {"d": True}), ("counts", {"d": None}),
        ("anything", None), ("anything", []), ("anything", "e"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Whole\.{key}\b"):
        from_json(Whole, DOCUMENT | {key: value})


@pytest.mark.parametrize("document", [None, True, 1, 1.5, "x", [], [DOCUMENT]], ids=str)
def test_a_document_that_is_no_table_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="Whole holds a"):
        from_json(Whole, document)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["large", "small"])
def test_a_number_that_no_float_can_hold_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"Whole\.share holds a number that is too large"):
        from_json(Whole, DOCUMENT | {"share": value})


def nested(depth: int, brackets: str = "[]") -> str:
    opening, closing = ('{"a":', "}") if brackets == "{}" else brackets
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_a_document_nested_beyond_measure_is_no_manifest_and_no_journal(brackets: str, tmp_path: Path) -> None:
    for name in (NAME, JOURNAL):
        (tmp_path / name).write_text(nested(100_000, brackets))
    assert read_manifest(tmp_path) is None
    assert _read_journal(tmp_path) == {}


def test_nesting_where_a_field_is_expected_is_refused() -> None:
    deep = json.loads(nested(500))
    for key in set(DOCUMENT) - {"anything"}:
        with pytest.raises(ValueError, match=rf"Whole\.{key}\b"):
            from_json(Whole, DOCUMENT | {key: deep})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b/c", "a/../b", "/etc/passwd", "../x", "a\0b", ".hidden", "a\nb", "\udcff", "ä"]
)
def test_a_name_that_no_merge_writes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a file that a merge writes"):
        from_json(OutputEntry, {"file": name, "size": 1, "xxh128": "0"})
    with pytest.raises(ValueError, match="is not a file that a merge writes"):
        from_json(CompanionEntry, {"file": name, "sha256": "0"})


@pytest.mark.parametrize("kind", [Manifest, JOURNALS], ids=str)
@given(document=DOCUMENTS)
def test_no_document_raises_anything_but_a_value_error(kind: Any, document: object) -> None:
    with contextlib.suppress(ValueError):
        read = from_json(kind, document)
        assert from_json(kind, written(read)) == read


@pytest.mark.parametrize("kind", [Manifest, JOURNALS], ids=str)
@given(data=st.data())
def test_a_record_with_one_odd_value_is_read_or_refused(kind: Any, data: st.DataObject) -> None:
    document = written(data.draw(records(kind)))
    place, key = data.draw(st.sampled_from([*places(document)] or [([document], 0)]))
    place[key] = data.draw(DOCUMENTS)
    with contextlib.suppress(ValueError):
        read = from_json(kind, document)
        assert from_json(kind, written(read)) == read


def places(document: Any) -> Any:
    """Every (container, key) of a document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from places(document[key])
