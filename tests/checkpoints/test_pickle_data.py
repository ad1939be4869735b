import argparse
import contextlib
import copyreg
import io
import pickle
import struct
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from container_files import (
    FLOATS,
    Call,
    Name,
    Opcodes,
    Open,
    Persistent,
    laughs,
    nested,
    opcodes,
    pickled,
    storage,
    tensor,
    torch_zip,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.checkpoints import pickle_data
from speechft_merge.checkpoints.pickle_data import Inert, Symbol, read_pickle
from speechft_merge.checkpoints.torch_tensors import CONSTRUCTORS, TensorView, storage_of
from speechft_merge.errors import CheckpointError

# what Python's pickletools says about backslashes in text of Python 2
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")


def read(code: bytes) -> Any:
    return read_pickle(io.BytesIO(code), "weights", CONSTRUCTORS, storage_of)


# plain data
PLAIN = st.none() | st.booleans() | st.integers(-(1 << 127), 1 << 127) | st.floats() | st.text()
KEYS = st.none() | st.booleans() | st.integers(1 - (1 << 60), (1 << 60) - 1) | st.text()


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(KEYS, inner, max_size=4)
        ),
        max_leaves=20,
    )


@settings(max_examples=60)
@given(trees(PLAIN), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_read_back_equal_under_every_protocol(value: Any, protocol: int) -> None:
    assert repr(read(pickle.dumps(value, protocol))) == repr(value)


@settings(max_examples=50)
@given(trees(PLAIN | st.binary()), st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_bytes_read_back_equal_where_pickle_has_an_opcode_for_them(value: Any, protocol: int) -> None:
    assert repr(read(pickle.dumps(value, protocol))) == repr(value)


@settings(max_examples=30)
@given(st.sets(st.integers() | st.text()), st.sampled_from([set, frozenset]), st.integers(4, pickle.HIGHEST_PROTOCOL))
def test_sets_read_back_as_lists(items: set[int | str], kind: type, protocol: int) -> None:
    back = read(pickle.dumps(kind(items), protocol))
    assert isinstance(back, list)
    assert len(back) == len(items)
    assert set(back) == items


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_ordered_dict_reads_back_as_a_dict(protocol: int) -> None:
    assert read(pickle.dumps(OrderedDict(b=1, a=[2]), protocol)) == {"b": 1, "a": [2]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_shared_and_circular_references_are_kept(protocol: int) -> None:
    shared: list[Any] = [1]
    value: dict[str, Any] = {"a": shared, "b": shared}
    value["self"] = value
    back = read(pickle.dumps(value, protocol))
    assert back["a"] == [1]
    assert back["a"] is back["b"]
    assert back["self"] is back


def test_a_bytearray_reads_back() -> None:
    assert read(pickle.dumps(bytearray(b"abc"), 5)) == b"abc"


def test_the_stream_stands_after_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1], 4) + pickle.dumps([2], 2))
    assert [read_pickle(stream, "weights", {}, storage_of) for _ in range(2)] == [[1], [2]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_object_is_read_for_what_it_holds(protocol: int) -> None:
    back = read(pickle.dumps(argparse.Namespace(arch="hubert", layers=12), protocol))
    assert isinstance(back, Inert)
    assert "argparse" in str(back) or back.arguments[0] == Symbol("argparse", "Namespace")
    assert back.state == {"arch": "hubert", "layers": 12}


def test_a_tuple_as_a_key_stays_unequal_to_every_other_key() -> None:
    back = read(pickle.dumps({(1, 2): "a", (1, 3): "b"}, 4))
    assert [type(key) for key in back] == [Inert, Inert]
    assert list(back.values()) == ["a", "b"]


# nothing runs
class Trap:
    """Tells when anything of it is called."""

    sprung: list[str] = []  # noqa: RUF012

    def __new__(cls, *_: object, **__: object) -> "Trap":
        Trap.sprung.append("__new__")
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        Trap.sprung.append("__setstate__")

    def __setitem__(self, _: object, __: object) -> None:
        Trap.sprung.append("__setitem__")

    def append(self, _: object) -> None:
        Trap.sprung.append("append")

    def extend(self, _: object) -> None:
        Trap.sprung.append("extend")

    def add(self, _: object) -> None:
        Trap.sprung.append("add")

    def __hash__(self) -> int:
        Trap.sprung.append("__hash__")
        return 0

    def __eq__(self, _: object) -> bool:
        Trap.sprung.append("__eq__")
        return True

    @staticmethod
    def spring(*_: object) -> "Trap":
        Trap.sprung.append("spring")
        return object.__new__(Trap)


def spring(*_: object) -> Trap:
    return Trap.spring()


EXTENSION = 240
MODULE = __name__.encode()
GLOBAL_TRAP = b"c" + MODULE + b"\nTrap\n"
GLOBAL_SPRING = b"c" + MODULE + b"\nspring\n"
MADE = GLOBAL_TRAP + b")\x81"


@pytest.fixture(autouse=True)
def _trap() -> Iterator[None]:
    copyreg.add_extension(__name__, "spring", EXTENSION)
    Trap.sprung.clear()
    yield
    copyreg.remove_extension(__name__, "spring", EXTENSION)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


LIVE = {
    "REDUCE of a GLOBAL": GLOBAL_SPRING + b")R",
    "REDUCE of eval": b"cbuiltins\neval\n" + opcodes((f"__import__({__name__!r}).Trap.spring()",)) + b"R",
    "REDUCE of a REDUCE": b"cbuiltins\ngetattr\n(" + GLOBAL_TRAP + text("spring") + b"tR)R",
    "REDUCE of apply": b"cfunctools\npartial\n(" + GLOBAL_SPRING + b"tR)R",
    "STACK_GLOBAL": text(__name__) + text("spring") + b"\x93)R",
    "STACK_GLOBAL of a dotted name": text(__name__) + text("Trap.spring") + b"\x93)R",
    "INST": b"(i" + MODULE + b"\nspring\n",
    "OBJ": b"(" + GLOBAL_SPRING + b"o",
    "NEWOBJ": MADE,
    "NEWOBJ_EX": GLOBAL_TRAP + b")}\x92",
    "NEWOBJ_EX with keywords": GLOBAL_TRAP + b")}" + text("a") + b"Ns\x92",
    "BUILD": MADE + b"}b",
    "BUILD of attributes": MADE + b"N}" + text("__class__") + GLOBAL_TRAP + b"s\x86b",
    "APPEND": MADE + b"Na",
    "APPENDS": MADE + b"(NNe",
    "ADDITEMS": MADE + b"(NN\x90",
    "SETITEM": MADE + b"NNs",
    "SETITEMS": MADE + b"(NNNNu",
    "a key of a dict": b"}" + MADE + b"Ns",
    "keys of a dict": b"(" + MADE + b"N" + MADE + b"Nd",
    "items of a set": b"\x8f(" + MADE + b"\x90",
    "items of a frozenset": b"(" + MADE + b"\x91",
    "EXT1": b"\x82" + bytes([EXTENSION]) + b")R",
    "EXT2": b"\x83" + struct.pack("<H", EXTENSION) + b")R",
    "EXT4": b"\x84" + struct.pack("<i", EXTENSION) + b")R",
    "an argument of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(" + GLOBAL_SPRING + b")RK\x00))t\x8c\x00tR",
    "a pair of an OrderedDict": b"ccollections\nOrderedDict\n](" + text("a") + MADE + b"ta\x85R",
    "REDUCE under protocol 0": b"c" + MODULE + b"\nspring\n(tR",
}


@pytest.mark.parametrize("code", LIVE.values(), ids=LIVE)
def test_what_runs_under_pickle_does_not_run_here(code: bytes) -> None:
    code = b"\x80\x04" + code
    with contextlib.suppress(Exception):  # what comes after the call does not matter
        pickle.loads(code + b".")
    assert Trap.sprung, "the pickle is a dud"
    Trap.sprung.clear()
    try:
        value = read(code + b".")
    except CheckpointError:
        value = None
    assert not isinstance(value, Trap)
    assert Trap.sprung == []


@pytest.mark.parametrize("module", ["os", "posix", "nt", "subprocess", "builtins", "__builtin__", "torch.hub", "torch"])
@pytest.mark.parametrize("name", ["system", "eval", "load", "__import__"])
def test_a_call_beside_the_model_is_a_word_about_it(module: str, name: str, open_bytes: Open) -> None:
    call = Call(Name(module, name), ("exit 1",))
    checkpoint = open_bytes(torch_zip({"model": {"a": tensor()}, "args": call}))
    assert checkpoint.tensors.keys() == {"a"}
    assert checkpoint.others == {"args": f"{module}.{name} (not rebuilt)"}


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter", "_flatten_dense_tensors"])
def test_a_name_of_torch_in_another_module_is_no_constructor(name: str) -> None:
    assert isinstance(read(pickled(Call(Name("evil.torch._utils", name), (1,)))), Inert)


def test_state_set_on_a_tensor_changes_nothing() -> None:
    code = opcodes(tensor()) + b"}" + text("offset") + b"K\x09sb"
    view = read(b"\x80\x04" + code + b".")
    assert isinstance(view, TensorView)
    assert view.offset == 0


def test_names_of_the_machine_s_own_methods_are_no_opcodes() -> None:
    for opcode in range(256):
        try:
            read(bytes([opcode]) + b".")
        except CheckpointError:
            continue


# persistent ids
@pytest.mark.parametrize(
    "persistent_id",
    [
        None, 0, "0", [], {}, (), ("storage",), "storage", ("module", "FloatStorage", "a", "b"),
        ("tensor", FLOATS, "0", "cpu", 4), ("storage", "FloatStorage", "0", "cpu", 4),
        ("storage", FLOATS, 0, "cpu", 4), ("storage", FLOATS, None, "cpu", 4), ("storage", FLOATS, b"0", "cpu", 4),
        ("storage", FLOATS, "0", "cpu"), ("storage", FLOATS, "0", "cpu", "4"), ("storage", FLOATS, "0", "cpu", 4.0),
        ("storage", FLOATS, "0", "cpu", -1), ("storage", FLOATS, "0", "cpu", None),
        ("storage", Name("os", "FloatStorage"), "0", "cpu", 4), ("storage", FLOATS, laughs(50), "cpu", 4),
        ("storage", FLOATS, "0", "cpu", 4, ("1", 0, 4)), laughs(50), nested(100_000), FLOATS, Call(FLOATS, ()),
    ],
)  # fmt: skip
def test_a_persistent_id_that_is_no_storage_is_refused(persistent_id: object) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(pickled([Persistent(persistent_id)]))
    assert len(str(refusal.value)) < 300


def test_a_persistent_id_in_text_is_refused() -> None:
    with pytest.raises(CheckpointError, match="refers to a str"):
        read(b"P0\n.")


# malformed pickles
MALFORMED = {
    "nothing": b"",
    "no stop": b"N",
    "only a stop": b".",
    "only a mark": b"(.",
    "an opcode that does not exist": b"\xff.",
    "text that ends early": b"\x8c\x09abc",
    "a tuple without a mark": b"Nt.",
    "a tuple on an empty stack": b"\x86.",
    "a list without a mark": b"Nl.",
    "a dict of three": b"(NNNd.",
    "items without a dict": b"N(NNu.",
    "an item of an integer": b"K\x01Na.",
    "an item of a tuple": b")Na.",
    "an item set in a list": b"]NNs.",
    "an item of nothing": b"Na.",
    "a memo that was never set": b"h\x05.",
    "a memo of an empty stack": b"q\x00.",
    "a mark as a value": b"](a.",
    "a mark as a key": b"}(Ns.",
    "a call without arguments": b"cos\nsystem\nR.",
    "a call with arguments in a list": b"cos\nsystem\n]R.",
    "a call with arguments in text": b"cos\nsystem\n\x8c\x01aR.",
    "a class whose name is a number": b"K\x01K\x02\x93.",
    "an object of no class": b"(o.",
    "a state without an object": b"Nb.",
    "a frame and no more": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    "a number of letters": b"Iabc\n.",
    "a number of 5000 digits": b"I" + b"9" * 5000 + b"\n.",
    "a fraction of letters": b"Fabc\n.",
    "text without quotes": b"Sabc\n.",
    "text that is no UTF-8": b"X\x01\x00\x00\x00\xff.",
    "text of 2 ** 31 bytes": b"X\xff\xff\xff\x7fabc.",
    "text of 2 ** 63 bytes": b"\x8d" + b"\xff" * 8 + b"abc.",
    "text of negative length": b"T\xff\xff\xff\xffabc.",
    "a number of negative length": b"\x8b\xff\xff\xff\xffabc.",
    "bytes of 2 ** 63 - 1": b"\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "a buffer out of band": b"\x97.",
    "a buffer read-only": b"N\x98.",
    "an unknown extension": b"\x82\x01.",
    "a module that is no ASCII": b"c\xff\nsystem\n.",
    "a size of torch that is text": b"ctorch\nSize\n(\x8c\x01atR.",
    "an ordered dict of numbers": b"ccollections\nOrderedDict\n]K\x01a\x85R.",
    "an ordered dict of nothing": b"ccollections\nOrderedDict\nN\x85R.",
    "an ordered dict of text": b"ccollections\nOrderedDict\n\x8c\x03abc\x85R.",
    "an ordered dict of tensors": b"ccollections\nOrderedDict\n" + opcodes(tensor()) + b"\x85R.",
}


@pytest.mark.parametrize("code", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_pickle_is_refused(code: bytes) -> None:
    with pytest.raises(CheckpointError, match="weights" if b"Size" not in code else None):
        read(code)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(code: bytes) -> None:
    said = ""
    try:
        read(code)
    except CheckpointError as refusal:
        said = str(refusal)
    assert len(said) < 1000


OPCODE = st.sampled_from(
    [
        b"(", b"0", b"1", b"2", b"N", b"\x88", b"K\x01", b"]", b"}", b")", b"l", b"d", b"t", b"a", b"e", b"s", b"u",
        b"b", b"o", b"R", b"Q", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x85", b"\x86", b"\x87", b"\x81", b"\x92",
        b"\x93", b"\x94", b"\x8f", b"\x90", b"\x91", b"\x8c\x01a", b"cos\nsystem\n", b"ccollections\nOrderedDict\n",
        b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_qtensor\n", b"ios\nsystem\n",
        opcodes(storage()), opcodes(tensor()),
    ]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(OPCODE, max_size=30).map(b"".join))
def test_any_opcodes_are_read_or_refused(code: bytes) -> None:
    said = ""
    try:
        read(code + b".")
    except CheckpointError as refusal:
        said = str(refusal)
    assert len(said) < 1000


# bombs
@pytest.mark.parametrize("key", [b"r\xff\xff\xff\x7f", b"r\xff\xff\xff\xff", b"p" + b"9" * 4000 + b"\n"])
def test_a_memo_of_two_thousand_million_costs_nothing(key: bytes) -> None:
    tracemalloc.start()
    assert read(b"N" + key + b".") is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_negative_memo_is_read_or_refused() -> None:
    with contextlib.suppress(CheckpointError):
        assert read(b"Np-1\n.") is None


def nested_objects(levels: int) -> Opcodes:
    return Opcodes(b"cos\nx\n" * levels + b"N" + b"\x85R" * levels)


def nested_dicts(levels: int) -> Opcodes:
    return Opcodes((b"}" + text("a")) * levels + b"N" + b"s" * levels)


LARGE = {
    "laughs": laughs(50),
    "deep tuples": nested(20_000),
    "deep objects": nested_objects(5_000),
    "deep dicts": nested_dicts(5_000),
    "a number of many digits": 10**5000,
    "a negative number of many digits": -(10**5000),
    "long text": "a" * 100_000,
    "long bytes": b"a" * 100_000,
}
"""Values that take long to print, hash, compare or let go."""

REBUILD_TYPED = Name("torch._tensor", "_rebuild_from_type_v2")
REBUILD_V3 = Name("torch._utils", "_rebuild_tensor_v3")
PLACES: dict[str, Callable[[object], object]] = {
    "the root": lambda value: value,
    "in the model": lambda value: {"a": tensor(), "odd": value},
    "beside the model": lambda value: {"model": {"a": tensor()}, "odd": value},
    "in a list beside the model": lambda value: {"model": {"a": tensor()}, "odd": [value, value]},
    "in place of the model": lambda value: {"model": value},
    "a shape": lambda value: {"a": tensor(shape=(value,))},
    "all of a shape": lambda value: {"a": tensor(shape=value)},
    "strides": lambda value: {"a": tensor(strides=value)},
    "an offset": lambda value: {"a": tensor(offset=value)},
    "a storage": lambda value: {"a": tensor(held=value)},
    "a count": lambda value: {"a": tensor(held=storage(count=value))},
    "metadata of a tensor": lambda value: {"a": tensor((4,), (1,), 0, None, value)},
    "a way to rebuild": lambda value: {"a": tensor(), "b": Call(REBUILD_TYPED, (value, 0, (), {}))},
    "a dtype": lambda value: {"a": tensor(), "b": Call(REBUILD_V3, (storage(), 0, (), (), False, {}, value))},
    "an argument": lambda value: {"a": tensor(), "b": Call(Name("os", "system"), (value,))},
    "pairs of an ordered dict": lambda value: Call(Name("collections", "OrderedDict"), (value,)),
    "a key of the root": lambda value: item(value, None),
    "a key in the model": lambda value: Opcodes(
        opcodes(item(value, tensor())) + opcodes("a") + opcodes(tensor()) + b"s"
    ),
    "a key beside the model": lambda value: Opcodes(
        opcodes(item(value, None)) + opcodes("model") + opcodes({"a": tensor()}) + b"s"
    ),
    "a key in place of the model": lambda value: {"model": item(value, None)},
}  # fmt: skip


def item(key: object, value: object) -> Opcodes:
    """A dict of one item, whose key may have no hash."""
    return Opcodes(b"}" + opcodes(key) + opcodes(value) + b"s")


@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_said_at_length(value: str, place: str, open_bytes: Open) -> None:
    large = LARGE[value]
    if value == "laughs" and "key" in place:
        large = laughs(16)  # takes 400 KB to print, no years
    said = []
    try:
        checkpoint = open_bytes(torch_zip(PLACES[place](large)))
    except CheckpointError as refusal:
        said = [len(str(refusal))]
    else:
        said = [len(word) for told in (checkpoint.others, checkpoint.unreadable) for word in (*told, *told.values())]
        if place == "a key in the model":  # a name; whoever prints it shortens it
            said = []
    assert max(said, default=0) < 1000


DEEP = {"tuples": nested(100_000), "objects": nested_objects(50_000), "dicts": nested_dicts(50_000)}


@pytest.mark.parametrize("code", DEEP.values(), ids=DEEP)
def test_deep_values_are_let_go_without_a_crash(code: Opcodes) -> None:
    read(pickled({"a": code}))


def test_as_many_steps_as_a_pickle_may_take_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.pickle_data.MAX_STEPS", 1000)
    assert read(b"N0" * 499 + b"N.") is None
    with pytest.raises(CheckpointError, match="takes more than 1000 steps"):
        read(b"N0" * 499 + b"NN.")


TUPLE = b"(" + b"N" * 5000 + b"tq\x050"
PAIRS = b"](" + b"(" + opcodes("a") + b"Ntq\x070" + b"h\x07" * 5000 + b"eq\x050"
QUANTIZED, ORDERED = opcodes(Name("torch._utils", "_rebuild_qtensor")), opcodes(Name("collections", "OrderedDict"))
TYPED = opcodes(REBUILD_TYPED) + b"q\x080"
AMPLIFIED = {
    "a call with a long tuple": TUPLE + QUANTIZED + b"q\x060" + b"h\x06h\x05R0" * 1000,
    "an ordered dict of long pairs": PAIRS + ORDERED + b"q\x060" + b"h\x06h\x05\x85R0" * 1000,
    "a subclass of tensors with a long tuple": TUPLE
    + b"(" + QUANTIZED + b"Nh\x05Ntq\x060" + TYPED + b"h\x08h\x06R0" * 1000,
    "a long persistent id": b"(" + b"".join(map(opcodes, ("storage", FLOATS, "0", "cpu", 4))) + b"N" * 5000 + b"tq\x050"
    + b"h\x05Q0" * 1000,
}  # fmt: skip


@pytest.mark.parametrize("code", AMPLIFIED.values(), ids=AMPLIFIED)
def test_work_that_one_opcode_repeats_is_counted_too(code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.pickle_data.MAX_STEPS", 20_000)
    with pytest.raises(CheckpointError):  # 5 million elements are looked at otherwise
        read(code + b"N.")


def test_a_subclass_of_tensors_is_no_way_around_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.pickle_data.MAX_STEPS", 20_000)
    arguments = b"(" + ORDERED + b"Nh\x05\x85Ntq\x060"
    value = None
    with contextlib.suppress(CheckpointError):
        value = read(PAIRS + arguments + TYPED + b"h\x08h\x06R0" * 1000 + b"h\x08h\x06R.")
    assert not isinstance(value, dict)


def test_a_long_tuple_is_not_copied_by_every_object_that_refers_to_it() -> None:
    keywords = b"}" + opcodes("a") + b"Nsq\x060"
    tracemalloc.start()
    with contextlib.suppress(CheckpointError):
        read(TUPLE + keywords + b"(" + b"cos\nx\nh\x05h\x06\x92" * 1000 + b"t.")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20  # 40 MB where it is copied


def seconds_of_keys(distance: int) -> float:
    """Processor time to read a dict of numbers that far apart: the least of three, since other processes disturb it."""
    items = b"".join(b"\x8a\x0a" + (distance * i).to_bytes(10, "little") + b"N" for i in range(1, 8001))
    taken = []
    for _ in range(3):
        started = time.process_time()
        with contextlib.suppress(CheckpointError):
            read(b"}(" + items + b"u.")
        taken.append(time.process_time() - started)
    return min(taken)


def test_numbers_chosen_to_collide_as_keys_take_no_longer_than_others() -> None:
    modulus = (1 << 61) - 1  # of Python's hash of a number
    assert seconds_of_keys(modulus) < 5 * seconds_of_keys(modulus - 1) + 0.1


def test_the_longest_pickle_takes_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    share = 10  # of the longest, to save time
    monkeypatch.setattr(pickle_data, "MAX_STEPS", pickle_data.MAX_STEPS // share)
    started = time.process_time()
    with pytest.raises(CheckpointError, match="steps"):
        read(b"]}" * 110_000 + b".")
    assert time.process_time() - started < 60 / share
