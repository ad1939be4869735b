import json
import struct

import pytest
import torch
from container_files import (
    Open,
    assert_holds,
    content,
    deserialize,
    entry,
    numbers,
    row_major,
    safetensors_file,
    torch_dtype,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from speechft_merge.checkpoints import DType, TensorSpan
from speechft_merge.checkpoints.json_text import MAX_TEXT
from speechft_merge.checkpoints.safetensors import MAX_RANK
from speechft_merge.errors import CheckpointError

UNKNOWN_TO_THE_LIBRARY_S_TORCH_READER = {DType.F8_E8M0}


# files that are as they should be
@pytest.mark.parametrize("dtype", sorted(set(DType) - UNKNOWN_TO_THE_LIBRARY_S_TORCH_READER, key=str))
@pytest.mark.parametrize("shape", [(2, 3), (), (0,), (2, 0, 3), (1, 1, 1)], ids=str)
def test_what_the_library_writes_reads_back(dtype: DType, shape: tuple[int, ...], open_bytes: Open) -> None:
    file = save({"a": numbers(dtype, *shape), "b": numbers(DType.F32, 2)})
    assert_holds(open_bytes(file), load(file))


def test_a_dtype_that_the_library_knows_by_name_only_reads_back(open_bytes: Open) -> None:
    file = save({"a": numbers(DType.F8_E8M0, 2, 3)})
    ((name, told),) = deserialize(file)
    span = open_bytes(file).tensors[name]
    assert (span.dtype.name, list(span.shape), content(span)) == (told["dtype"], told["shape"], bytes(told["data"]))


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
DTYPES = st.sampled_from(sorted(set(DType) - UNKNOWN_TO_THE_LIBRARY_S_TORCH_READER, key=str))


@settings(max_examples=60)
@given(
    st.dictionaries(NAMES, st.tuples(DTYPES, SHAPES), min_size=1, max_size=5),
    st.none() | st.dictionaries(NAMES, NAMES.map("no tensor: {}".format), max_size=3),
)
def test_names_shapes_offsets_and_metadata_are_the_library_s(
    open_bytes: Open, described: dict[str, tuple[DType, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    tensors = {name: numbers(dtype, *shape) for name, (dtype, shape) in described.items()}
    file = save(tensors, metadata)
    checkpoint = open_bytes(file)
    assert_holds(checkpoint, tensors)
    assert checkpoint.metadata == (metadata or {})
    (length,) = struct.unpack("<Q", file[:8])
    header = json.loads(file[8 : 8 + length])
    for name, span in checkpoint.tensors.items():
        begin, end = header[name]["data_offsets"]
        assert (span.offset, span.nbytes) == (8 + length + begin, end - begin)


def test_tensors_come_in_the_order_of_their_bytes(open_bytes: Open) -> None:
    file = safetensors_file({"c": entry(2, 3), "a": entry(3, 5), "b": entry(0, 2)}, b"12345")
    assert list(open_bytes(file).tensors) == ["b", "c", "a"]


def test_a_header_padded_with_spaces_is_read(open_bytes: Open) -> None:
    file = safetensors_file(json.dumps({"a": entry(0, 2)}).encode() + b" " * 100, b"12")
    assert content(open_bytes(file).tensors["a"]) == b"12" == bytes(deserialize(file)[0][1]["data"])


def test_keys_of_an_entry_that_are_not_known_are_passed_over(open_bytes: Open) -> None:
    file = safetensors_file({"a": entry(0, 2) | {"comment": "new"}}, b"12")
    assert content(open_bytes(file).tensors["a"]) == b"12" == bytes(deserialize(file)[0][1]["data"])


def test_no_metadata_may_be_written_as_null(open_bytes: Open) -> None:
    file = safetensors_file({"__metadata__": None, "a": entry(0, 2)}, b"12")
    assert deserialize(file)
    assert open_bytes(file).metadata == {}


def test_the_most_dimensions_allowed_are_read(open_bytes: Open) -> None:
    file = safetensors_file({"a": entry(0, 2, [1] * (MAX_RANK - 1) + [2])}, b"12")
    assert content(open_bytes(file).tensors["a"]) == b"12"


def test_tensors_in_one_place_have_one_place(open_bytes: Open) -> None:
    spans = open_bytes(safetensors_file({"a": entry(0, 2), "b": entry(2, 4)}, b"1234")).tensors
    again = TensorSpan(spans["a"].source, spans["a"].offset, DType.U8, (2,))
    assert spans["a"].storage_key == again.storage_key
    assert spans["a"].storage_key != spans["b"].storage_key


def test_parameters_are_counted(open_bytes: Open) -> None:
    assert open_bytes(save({"a": torch.ones(3, 4), "b": torch.tensor(1)})).parameters == 13


# files that lie
def lying(**entries: object) -> bytes:
    """Four bytes of tensors under a header of these entries."""
    return safetensors_file(entries, b"1234")


def headed(text: str | bytes, body: bytes = b"") -> bytes:
    return safetensors_file(text.encode() if isinstance(text, str) else text, body)


GOOD = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'

REFUSED_BY_BOTH = {
    "a tensor past the end of the file": (lying(a=entry(0, 4), b=entry(4, 9)), "cut short"),
    "overlapping tensors": (lying(a=entry(0, 3), b=entry(2, 4)), "'b' overlaps the tensor before it"),
    "a tensor inside another": (lying(a=entry(0, 4), b=entry(1, 2)), "'b' overlaps the tensor before it"),
    "twice the same bytes": (lying(a=entry(0, 4), b=entry(0, 4)), "overlaps the tensor before it"),
    "a gap": (lying(a=entry(0, 1), b=entry(2, 4)), "'b' leaves a gap before it"),
    "a gap at the start": (lying(a=entry(1, 4)), "'a' leaves a gap before it"),
    "bytes after the last tensor": (lying(a=entry(0, 3)), "bytes after the last tensor"),
    "too few bytes for the shape": (lying(a=entry(0, 4, [5])), r"takes 5 bytes, its data_offsets .* give 4"),
    "too few bytes for the dtype": (lying(a=entry(0, 4, [4], "F16")), r"takes 8 bytes, its data_offsets .* give 4"),
    "an end before the begin": (lying(a=entry(4, 0, [4])), r"data_offsets \[4, 0\] give -4"),
    "a negative size": (lying(a=entry(0, 4, [-4])), "has the shape"),
    "two negative sizes": (lying(a=entry(0, 4, [-2, -2])), "has the shape"),
    "a fractional size": (lying(a=entry(0, 4, [4.0])), "has the shape"),
    "a boolean size": (lying(a=entry(0, 4, [4, True])), "has the shape"),
    "a size in a string": (lying(a=entry(0, 4, ["4"])), "has the shape"),
    "a size past 64 bits": (lying(a=entry(0, 4, [0, 1 << 64])), "has the shape"),
    "sizes whose product wraps around": (lying(a=entry(0, 4, [1 << 62, 8, 4])), "takes"),
    "a shape that is a number": (lying(a=entry(0, 4, 4)), "has the shape"),
    "a shape that is null": (headed('{"a":{"dtype":"U8","shape":null,"data_offsets":[0,4]}}', b"1234"), "shape None"),
    "a negative offset": (lying(a=entry(-4, 0, [4])), "has the data_offsets"),
    "a fractional offset": (lying(a=entry(0, 4.0, [4])), "has the data_offsets"),
    "a boolean offset": (lying(a=entry(False, 4, [4])), "has the data_offsets"),
    "an offset past 64 bits": (lying(a=entry(0, 1 << 64, [4])), "has the data_offsets"),
    "three offsets": (lying(a=entry(0, 4) | {"data_offsets": [0, 2, 4]}), "has the data_offsets"),
    "no offsets": (lying(a={"dtype": "U8", "shape": [4]}), "has no dtype, shape and data_offsets"),
    "no dtype": (lying(a={"shape": [4], "data_offsets": [0, 4]}), "has no dtype, shape and data_offsets"),
    "an entry that is a list": (lying(a=[0, 4]), "has no dtype, shape and data_offsets"),
    "an entry that is null": (lying(a=None), "has no dtype, shape and data_offsets"),
    "a key of an entry twice": (headed('{"a":{"dtype":"I8",' + GOOD[1:] + "}", b"1234"), "'dtype' occurs twice"),
    "an unknown dtype": (lying(a=entry(0, 4, dtype="F99")), "unknown dtype 'F99'"),
    "a dtype that is a number": (lying(a=entry(0, 4, dtype=8)), "unknown dtype"),
    "a dtype that is a list": (lying(a=entry(0, 4, dtype=["U8"])), "unknown dtype"),
    "a dtype that is an object": (lying(a=entry(0, 4, dtype={})), "unknown dtype"),
    "metadata that are no strings": (lying(a=entry(0, 4), __metadata__={"a": 1}), "must map strings to strings"),
    "metadata in a list": (lying(a=entry(0, 4), __metadata__=["a"]), "must map strings to strings"),
    "metadata in an empty list": (lying(a=entry(0, 4), __metadata__=[]), "must map strings to strings"),
    "metadata that are false": (lying(a=entry(0, 4), __metadata__=False), "must map strings to strings"),
    "metadata in a string": (lying(a=entry(0, 4), __metadata__="a"), "must map strings to strings"),
    "a header that is cut off": (headed(f'{{"a":{GOOD}', b"1234"), "not valid JSON"),
    "a header of words": (headed("{hello there}"), "not valid JSON"),
    "a comma too many": (headed(f'{{"a":{GOOD},}}', b"1234"), "not valid JSON"),
    "two headers": (headed(f'{{"a":{GOOD}}}{{}}', b"1234"), "not valid JSON"),
    "a NaN": (headed('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}', b"1234"), "NaN is not JSON"),
    "an infinity": (headed('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,Infinity]}}'), "Infinity is not JSON"),
    "a number of 5000 digits": (headed('{"a":%s}' % ("9" * 5000)), "not valid JSON"),
    "bytes that are no text": (headed(b'{"\xff":' + GOOD.encode() + b"}", b"1234"), "not valid JSON"),
    "a name that is half a surrogate pair": (headed(f'{{"\\ud800":{GOOD}}}', b"1234"), "weights"),
    "deep lists": (headed('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deeply"),
    "deep objects": (headed('{"a":' * 100_000 + "0" + "}" * 100_000), "nested too deeply"),
    "a header longer than the file": (struct.pack("<Q", 100) + b"{}", "a header of 100 bytes in a file of 10"),
    "a header of 2 ** 63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "a header of 9223372036854775808 bytes"),
    "a header of 2 ** 64 - 1 bytes": (b"\xff" * 8 + b"{}", "a header of 18446744073709551615 bytes"),
}  # fmt: skip

REFUSED_BY_US_ALONE = {
    "a name that occurs twice": (headed(f'{{"a":{GOOD},"a":{GOOD}}}', b"1234"), "the name 'a' occurs twice"),
    "100 dimensions": (lying(a=entry(0, 4, [1] * 99 + [4])), "has the shape"),
    "a size past 63 bits": (lying(a=entry(0, 0, [0, 1 << 63]), b=entry(0, 4)), "has the shape"),
}
"""Stricter than the library: two readers could understand two things, or numpy could not hold it."""


@pytest.mark.parametrize(("file", "reason"), REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_a_file_that_lies_is_refused_as_the_library_refuses_it(file: bytes, reason: str, open_bytes: Open) -> None:
    with pytest.raises(SafetensorError):
        deserialize(file)
    with pytest.raises(CheckpointError, match=reason):
        open_bytes(file)


@pytest.mark.parametrize(("file", "reason"), REFUSED_BY_US_ALONE.values(), ids=REFUSED_BY_US_ALONE)
def test_a_file_that_is_ambiguous_is_refused(file: bytes, reason: str, open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match=reason):
        open_bytes(file)


@pytest.mark.parametrize("text", ["[]", '"a"', "1", "null", '["a"]'])
def test_a_header_that_is_no_object_is_refused(text: str, open_bytes: Open) -> None:
    with pytest.raises(SafetensorError):
        deserialize(headed(text))
    with pytest.raises(CheckpointError):
        open_bytes(headed(text))


@pytest.mark.parametrize("header", [{}, {"__metadata__": {"format": "pt"}}], ids=str)
def test_a_file_without_tensors_is_refused(header: dict[str, object], open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_bytes(safetensors_file(header))


def test_a_file_cut_short_anywhere_is_refused(open_bytes: Open) -> None:
    file = save({"a": torch.arange(3.0), "b": torch.tensor(1)}, {"format": "pt"})
    for length in range(len(file)):
        with pytest.raises(CheckpointError):
            open_bytes(file[:length])
        with pytest.raises(SafetensorError):
            deserialize(file[:length])


def test_a_header_above_the_bound_is_refused(open_bytes: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TEXT == 16 << 20
    file = save({"a": torch.ones(2)})
    monkeypatch.setattr("speechft_merge.checkpoints.safetensors.MAX_TEXT", struct.unpack("<Q", file[:8])[0] - 1)
    with pytest.raises(CheckpointError, match="at most"):
        open_bytes(file)


@pytest.mark.parametrize("levels", range(940, 1000, 7))
def test_nesting_near_the_limit_of_the_interpreter_is_refused_too(levels: int, open_bytes: Open) -> None:
    deep = "[" * levels + "]" * levels
    for file in (f'{{"a":{{"dtype":"U8","shape":{deep},"data_offsets":[0,4]}}}}', f'{{"a":{{"dtype":{deep}}}}}'):
        with pytest.raises(CheckpointError):
            open_bytes(headed(file, b"1234"))


def test_messages_name_the_file_and_the_tensor(open_bytes: Open) -> None:
    with pytest.raises(
        CheckpointError, match=r"weights: tensor 'conv\.0' has the unknown dtype 'F4'; use one of F64, F32"
    ):
        open_bytes(lying(**{"conv.0": entry(0, 4, dtype="F4")}))


def test_bytes_equal_the_tensor_s(open_bytes: Open) -> None:
    tensor = torch.randn(3, 5).to(torch_dtype(DType.BF16))
    assert content(open_bytes(save({"a": tensor})).tensors["a"]) == row_major(tensor)
