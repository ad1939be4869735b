import argparse
import collections
import io
import time
import tracemalloc
import types
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from container_files import Opcodes, Open, assert_holds, opcodes, saved, tensor, torch_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.pickle_data import Inert, Symbol
from speechft_merge.checkpoints.state_dict import MAX_DEPTH, find_state_dicts
from speechft_merge.checkpoints.torch_tensors import Storage, TensorView
from speechft_merge.errors import CheckpointError

SMALL, LARGE = {"a": torch.zeros(3)}, {"a": torch.ones(2), "b": torch.ones(5)}


# which one
@pytest.mark.parametrize("first", ["aside", "model", "state_dict", "0"])
@pytest.mark.parametrize("second", ["ema", "net", "zzz"])
def test_the_dictionary_with_the_most_parameters_is_the_model(first: str, second: str, open_bytes: Open) -> None:
    for order in ({first: SMALL, second: LARGE}, {second: LARGE, first: SMALL}):
        checkpoint = open_bytes(saved(order))
        assert checkpoint.state_path == second
        assert_holds(checkpoint, LARGE)


USUAL = ["state_dict", "model_state_dict", "model", "model_weight", "Upstream", "module", "net", "ema"]


@pytest.mark.parametrize(("usual", "other"), [(a, b) for i, a in enumerate(USUAL) for b in USUAL[i + 1 :]])
def test_among_equals_the_more_usual_key_is_the_model_s(usual: str, other: str, open_bytes: Open) -> None:
    for keys in ((usual, other), (other, usual)):
        assert open_bytes(saved({key: {"a": torch.ones(3)} for key in keys})).state_path == usual


def test_among_equals_under_one_key_the_shallower_is_the_model(open_bytes: Open) -> None:
    for root in ({"x": {"model": SMALL}, "model": SMALL | {}}, {"model": SMALL | {}, "x": {"model": SMALL}}):
        assert open_bytes(saved(root)).state_path == "model"


def test_the_whole_file_may_be_the_model(open_bytes: Open) -> None:
    checkpoint = open_bytes(saved(LARGE | {"config": {"layers": 2}, "aside": SMALL}))
    assert checkpoint.state_path == ""
    assert_holds(checkpoint, LARGE)


def test_a_model_with_a_little_of_something_else_in_it_is_found(open_bytes: Open) -> None:
    state: dict[str, Any] = LARGE | {"extra_state": {"version": 1}, "epoch": 3, "none": None}
    assert_holds(open_bytes(saved({"model": state})), LARGE)


OPTIMIZERS: dict[str, Any] = {
    "numbered": {"state": {0: {"exp_avg": torch.ones(100), "exp_avg_sq": torch.ones(100)}}, "param_groups": []},
    "numbered at the top": {0: torch.ones(100), 1: torch.ones(100)},
    "in a list": [{"exp_avg": torch.ones(100)}],
    "in a tuple": ({"exp_avg": torch.ones(100)}, 3),
    "in an object": argparse.Namespace(state={"exp_avg": torch.ones(100)}),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_s_state_is_never_the_model(optimizer: Any, open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({"optimizer": optimizer, "model": SMALL}))
    assert checkpoint.state_path == "model"
    with pytest.raises(CheckpointError, match="holds no state dict"):
        open_bytes(saved({"optimizer": optimizer}))


@pytest.mark.parametrize("depth", [0, 1, 2, MAX_DEPTH])
def test_a_model_is_found_at_any_likely_depth(depth: int, open_bytes: Open) -> None:
    root: Any = SMALL
    for level in range(depth):
        root = {f"k{level}": root, "epoch": level}
    checkpoint = open_bytes(saved(root))
    assert checkpoint.state_path == ".".join(f"k{level}" for level in reversed(range(depth)))
    assert_holds(checkpoint, SMALL)


def test_a_model_that_lies_deeper_is_not_searched_for(open_bytes: Open) -> None:
    root: Any = SMALL
    for _ in range(MAX_DEPTH + 1):
        root = {"k": root}
    with pytest.raises(CheckpointError, match="holds no state dict"):
        open_bytes(saved(root))


def test_dictionaries_that_hold_each_other_are_searched_once(open_bytes: Open) -> None:
    root: dict[str, Any] = {"model": {**SMALL}}
    root["self"] = root
    root["model"]["parent"] = root
    checkpoint = open_bytes(saved(root))
    assert checkpoint.state_path == "model"
    assert_holds(checkpoint, SMALL)


@pytest.mark.parametrize("keys", [(0, "0"), ("0", 0), (b"m", "m"), (True, "True")])
def test_keys_that_look_alike_are_told_apart(keys: tuple[Any, Any], open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({keys[0]: {"x": LARGE}, keys[1]: {"y": SMALL}}))
    assert_holds(checkpoint, LARGE)
    assert [len(other.tensors) for other in checkpoint.alternatives.values()] == [1]


def test_two_tensors_under_a_dotted_key_are_found(open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({"my.model": SMALL, "epoch": 3}))
    assert_holds(checkpoint, SMALL)
    assert checkpoint.others == {"epoch": "3"}


def test_a_model_under_an_empty_key_is_found_with_what_lies_beside_it(open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({"": SMALL, "epoch": 3}))
    assert_holds(checkpoint, SMALL)
    assert checkpoint.others == {"epoch": "3"}


STATES = st.recursive(
    st.integers(0, 9).map(lambda size: torch.zeros(size)) | st.integers() | st.none() | st.just("text"),
    lambda inner: st.dictionaries(st.sampled_from([*"abc", "model", "state_dict", 0, 1]), inner, max_size=4),
    max_leaves=12,
)


def largest(value: object, depth: int = 0) -> int:
    """Most elements that one dictionary with text as keys holds itself; -1 when none holds a tensor."""
    if not isinstance(value, dict) or depth > MAX_DEPTH:
        return -1
    named = {key: item for key, item in value.items() if isinstance(key, str)}
    sizes = [item.numel() for item in named.values() if isinstance(item, torch.Tensor)]
    return max([sum(sizes) if sizes else -1, *(largest(item, depth + 1) for item in value.values())])


@settings(max_examples=60)
@given(STATES)
def test_no_dictionary_of_tensors_is_larger_than_the_one_found(open_bytes: Open, root: object) -> None:
    most = largest(root)
    if most < 0:
        with pytest.raises(CheckpointError, match="holds no state dict"):
            open_bytes(saved(root))
    else:
        assert sum(span.elements for span in open_bytes(saved(root)).tensors.values()) == most


# containers of any kind
class Table(dict[str, Any]):
    """A subclass, as EasyDict and Munch are."""


class Ordered(collections.OrderedDict[str, Any]):
    """Likewise."""


class Several(list[Any]):
    """A subclass of list."""


class Run(NamedTuple):
    epoch: int
    model: dict[str, torch.Tensor]


@dataclass
class State:
    model: dict[str, torch.Tensor]
    epoch: int = 3


class User(collections.UserDict[str, Any]):
    """A dictionary that keeps its entries in an attribute."""


CONTAINERS: dict[str, tuple[Any, str]] = {
    "a tuple with an epoch": ((3, LARGE), "1"),
    "a list with an optimizer": ([LARGE, {"optimizer": LARGE | {"c": torch.ones(9)}}], "0"),
    "a number for a key": ({0: LARGE}, "0"),
    "a default dictionary": (collections.defaultdict(dict, {"model": LARGE}), "model"),
    "a default dictionary of tensors": (collections.defaultdict(list, LARGE), ""),
    "a subclass": ({"net": Table(LARGE)}, "net"),
    "a subclass of an ordered one": (Ordered(LARGE), ""),
    "all nested": ([{"x": ({7: Table(LARGE)},)}], "0.x.0.7"),
    "bytes for keys": ({key.encode(): tensor for key, tensor in LARGE.items()}, ""),
    "a subclass of list": (Several([3, LARGE]), "1"),
    "a queue": (collections.deque([LARGE], maxlen=3), "0"),
    "a named tuple": (Run(3, LARGE), "1"),
    "a dataclass": ({"state": State(LARGE)}, "state.model"),
    "a namespace": (types.SimpleNamespace(epoch=3, net=LARGE), "net"),
    "a user's dictionary": (User(LARGE), "data"),
    "a list of pairs": ({"model": list(LARGE.items())}, "model"),
    "pairs of epochs and models": ([(1, SMALL), (2, LARGE)], "2"),
    "pairs that are alike": ([(1, SMALL), (1, LARGE)], "1.1"),
}


@pytest.mark.parametrize(("root", "path"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_model_is_found_in_containers_of_any_kind(root: Any, path: str, open_bytes: Open) -> None:
    checkpoint = open_bytes(saved(root))
    assert checkpoint.state_path == path
    assert_holds(checkpoint, LARGE)


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
    "in columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "of the other byte order": np.arange(6, dtype=">f4"),
    "halves": np.arange(5, dtype=np.float16),
    "integers": np.arange(4).reshape(2, 2),
    "a slice": np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
    "no dimension": np.array(3.0),
    "nothing": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_array_of_numpy_is_read_as_the_tensor_that_it_is(
    array: np.ndarray[Any, Any], protocol: int, open_bytes: Open
) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"w": array, "b": torch.ones(2)}}, buffer, pickle_protocol=protocol)
    native = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    assert_holds(open_bytes(buffer.getvalue()), {"w": native, "b": torch.ones(2)})


def test_an_array_of_objects_or_words_is_no_tensor(open_bytes: Open) -> None:
    others = {"o": np.array([{}, 1], dtype=object), "w": np.array(["a"])}
    assert_holds(open_bytes(saved({"model": {**others, "b": torch.ones(2)}})), {"b": torch.ones(2)})


def test_a_module_s_own_tensors_are_no_model(open_bytes: Open) -> None:
    for root in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2)}, State(torch.nn.Linear(2, 2))):  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="holds no state dict"):
            open_bytes(saved(root))


# what lies beside it
BESIDE: dict[str, tuple[object, str]] = {
    "a number": (3, "3"),
    "a fraction": (0.5, "0.5"),
    "a truth": (True, "True"),
    "nothing": (None, "None"),
    "a word": ("hubert", "'hubert'"),
    "a text": ("word " * 20, "text of 100 characters"),
    "bytes": (b"abc", "_codecs.encode (not rebuilt)"),
    "a list": ([1, [2]], "list of 2"),
    "a tuple": ((1, 2, 3), "tuple of 3"),
    "an empty dict": ({}, "dict of 0"),
    "a dict": ({"a": 1, 0: torch.ones(1).tolist()}, "dict of 2"),
    "other tensors": ({"a": torch.ones(1), "b": torch.ones(1), "c": 1}, "2 tensors"),
    "a tensor": (torch.ones(2, 3), "tensor [2, 3]"),
    "a lazy tensor": (torch.ones(2, dtype=torch.complex64).conj(), "tensor (a lazy view (conj or neg))"),
    "an object": (argparse.Namespace(a=1), "argparse.Namespace (not rebuilt)"),
    "a class": (argparse.Namespace, "argparse.Namespace"),
}


@pytest.mark.parametrize(("value", "said"), BESIDE.values(), ids=BESIDE)
def test_what_lies_beside_the_model_is_described(value: object, said: str, open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({"model": {"state": LARGE, "other": value}}))
    assert checkpoint.state_path == "model.state"
    assert checkpoint.others["model.other"] == said


def test_what_lies_along_the_path_is_described_too(open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({"epoch": 3, 7: "seven", "a": {"b": {"c": LARGE, "lr": 0.5}, "d": [1]}}))
    assert checkpoint.state_path == "a.b.c"
    assert checkpoint.others == {"epoch": "3", "7": "'seven'", "a.d": "list of 1", "a.b.lr": "0.5"}


NOT_MODELS: dict[str, tuple[object, str]] = {
    "an empty dict": ({}, "its entries are"),
    "hyper-parameters": ({"lr": 0.5, "betas": (0.9, 0.98)}, "its entries are 'lr': 0.5, 'betas': tuple of 2"),
    "a list of tensors": ([torch.ones(1)], "it is list of 1"),
    "a tensor": (torch.ones(2, 3), r"it is tensor \[2, 3\]"),
    "a number": (3, "it is 3"),
    "nothing": (None, "it is None"),
    "an object": (argparse.Namespace(a=1), r"it is a pickled argparse\.Namespace object"),
    "tensors under numbers": ({0: torch.ones(2)}, r"its entries are '?0'?: tensor \[2\]"),
    "lazy tensors": ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "its entries are 'a': tensor .a lazy view"),
}


@pytest.mark.parametrize(("value", "said"), NOT_MODELS.values(), ids=NOT_MODELS)
def test_a_file_without_a_model_is_refused_with_what_it_holds(value: object, said: str, open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match=f"holds no state dict: {said}"):
        open_bytes(saved(value))


def test_only_the_first_entries_are_named(open_bytes: Open) -> None:
    with pytest.raises(CheckpointError) as refusal:
        open_bytes(saved({f"k{i}": i for i in range(1000)}))
    assert "'k7'" in str(refusal.value)
    assert "'k8'" not in str(refusal.value)


# what a few bytes can blow up
def shared(items: int, code: bytes, *before: bytes) -> Opcodes:
    """A dict of text keys, each with the value that `code` makes."""
    return Opcodes(b"".join(before) + b"}(" + b"".join(b"\x8c\x05%05d" % i + code for i in range(items)) + b"u")


def test_a_long_key_is_not_copied_for_everything_below_it(open_bytes: Open) -> None:
    models = shared(300, opcodes({"a": tensor()}))
    beside = shared(300, b"N")
    file = torch_zip({"k" * 200_000: Opcodes(opcodes({"models": models, "beside": beside}))})
    tracemalloc.start()
    open_bytes(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20  # 60 MB where it is copied


def test_a_long_key_is_not_copied_for_everything_beside_the_model(open_bytes: Open) -> None:
    beside = Opcodes(opcodes(shared(300, b"N")) + opcodes("model") + opcodes({"a": tensor()}) + b"s")
    file = torch_zip({"k" * 200_000: beside})
    tracemalloc.start()
    open_bytes(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20  # 60 MB where it is copied


def reconstructed(size: int, text: bytes) -> Opcodes:
    """An array of `size` single-precision numbers whose bytes `text` pushes."""
    dtype = b"cnumpy\ndtype\n\x8c\x02f4\x89\x88\x87R(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n)N\x87R"
    return Opcodes(array + b"(K\x01" + opcodes(size) + b"\x85" + dtype + b"\x89" + text + b"tb")


MEGABYTE = opcodes("\0" * (1 << 20))
ENCODED = b"c_codecs\nencode\n" + MEGABYTE + b"\x8c\x06latin1\x86R"
SHARING: dict[str, Opcodes] = {
    "one array": shared(300, b"h\x05", opcodes(reconstructed(1 << 18, ENCODED)), b"q\x050"),
    "one text of many arrays": shared(300, opcodes(reconstructed(1 << 18, b"h\x05")), ENCODED, b"q\x050"),
    "one bytearray": shared(
        300,
        opcodes(reconstructed(1 << 18, b"h\x05")),
        b"\x96" + (1 << 20).to_bytes(8, "little") + bytes(1 << 20),
        b"q\x050",
    ),
}


@pytest.mark.parametrize("root", SHARING.values(), ids=SHARING)
def test_what_arrays_share_is_held_once(root: Opcodes, open_bytes: Open) -> None:
    file = torch_zip(root)
    tracemalloc.start()
    assert len(open_bytes(file).tensors) == 300
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20  # 300 MB where each has a copy


def test_one_dictionary_in_many_objects_is_searched_once(open_bytes: Open) -> None:
    tensors = opcodes(shared(2000, b"h\x06", opcodes(tensor()), b"q\x060"))
    objects = b"c__main__\nTable\nh\x05\x85R" * 2000
    file = torch_zip(Opcodes(tensors + b"q\x050](" + objects + b"e"))
    tracemalloc.start()
    assert len(open_bytes(file).tensors) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20  # 110 MB where it is searched for each


def test_numbers_that_collide_are_no_keys_of_pairs(open_bytes: Open) -> None:
    pairs = Several([((2**61 - 1) * k, 0) for k in range(1, 40_000)])
    started = time.process_time()
    assert_holds(open_bytes(saved({"pairs": pairs, "model": SMALL})), SMALL)
    assert time.process_time() - started < 3


def seconds_beside(entries: int, open_bytes: Open) -> float:
    """Processor time to open a model beside 2000 names of one dict of that many entries."""
    names = opcodes(shared(2000, b"h\x05")) + opcodes("model") + opcodes({"a": tensor()}) + b"s"
    file = torch_zip(Opcodes(opcodes(shared(entries, b"N")) + b"q\x050" + names))
    started = time.process_time()
    open_bytes(file)
    return time.process_time() - started


def test_one_value_under_many_names_is_not_counted_for_each(open_bytes: Open) -> None:
    assert seconds_beside(10_000, open_bytes) < 5 * seconds_beside(10, open_bytes) + 0.3


def test_modules_in_modules_are_counted_once_and_at_any_depth() -> None:
    weight = TensorView(Storage("0", DType.F32, "FloatStorage", 100), DType.F32, 0, (10, 10), (10, 1))
    module = Inert(Symbol("torch.nn", "Linear"), state={"_parameters": {"weight": weight}, "_modules": {}})
    for _ in range(5000):  # more than Python's own stack holds
        module = Inert(Symbol("torch.nn", "Sequential"), state={"_parameters": {}, "_modules": {"0": module}})
    root = {"state_dict": {"weight": weight}, "model": module, "again": [module] * 5000}
    (found,) = find_state_dicts(root, "file")
    assert found.modules == ("model",)


# what belongs to the weights
MODEL = {f"layers.{i}.weight": torch.rand(4, 4) for i in range(4)}
SETTINGS = {"optimizer": {"name": "Adam"}, "scheduler": {"name": "linear"}}
BESIDE: dict[str, tuple[dict[str, Any], set[tuple[str, ...]]]] = {
    "an optimizer": ({"optimizer": OPTIMIZERS["numbered"]}, {("optimizer",)}),
    "optimizers in a list": ({"optimizer_states": [OPTIMIZERS["numbered"]]}, {("optimizer_states",)}),
    "an optimizer further in": ({"trainer": {"optim": OPTIMIZERS["in a list"]}}, {("trainer", "optim")}),
    "a scheduler beside an optimizer": (
        {"lr_scheduler": {"epoch": 3}, "Optimizer": OPTIMIZERS["in a tuple"]},
        {("lr_scheduler",), ("Optimizer",)},
    ),
    "settings": ({"config": SETTINGS, "optimizer_history": [{"num_updates": 3}], "scheduler": {"epoch": 3}}, set()),
    "an average of another type": ({"model_avg": {n: t.double() for n, t in MODEL.items()}}, {("model_avg",)}),
    "an average under wrappers": ({"ema": {f"module.{n}": t + 1 for n, t in MODEL.items()}}, {("ema",)}),
    "an average of most": ({"ema": {n: t + 1 for n, t in MODEL.items() if "3" not in n}}, {("ema",)}),
    "an average within the model": ({}, {("model", "_ema")}),
    "the same tensors again": ({"state_dict": MODEL}, set()),
    "another model": ({"discriminator": {n: torch.rand(4, 5) for n in MODEL}}, set()),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_a_merge_would_leave_stale_is_told(kind: str, open_bytes: Open) -> None:
    beside, stale = BESIDE[kind]
    inner = {"_ema": {n: t + 1 for n, t in MODEL.items()}} if kind == "an average within the model" else {}
    checkpoint = open_bytes(saved({"model": {**MODEL, **inner}, **beside}))
    checkpoint = checkpoint.alternatives.get("model", checkpoint)
    assert set(checkpoint.stale) == stale


def test_a_copy_that_is_picked_has_the_model_as_its_copy(open_bytes: Open) -> None:
    checkpoint = open_bytes(saved({"model": MODEL, "ema": {n: t + 1 for n, t in MODEL.items()}}))
    assert checkpoint.alternatives["ema"].stale == {("model",): "another copy of the weights"}
