import struct

import pytest
import torch
from container_files import (
    FOUR_FLOATS,
    SYSTEM,
    VIEWS,
    Name,
    Opcodes,
    Open,
    Tensors,
    assert_holds,
    content,
    laughs,
    loaded,
    names_the_file,
    nested,
    numbers,
    odd_tensors,
    pickled,
    saved,
    storage,
    tensor,
    torch_legacy,
)

from speechft_merge.checkpoints import DType
from speechft_merge.checkpoints.torch_legacy import MAGIC_NUMBER
from speechft_merge.errors import CheckpointError

COUNT = struct.pack("<q", 4)
STATE = {"a": tensor()}
GOOD = torch_legacy(STATE)


# what torch.save writes
@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("shape", [(2, 3), (), (0,)], ids=str)
def test_every_dtype_reads_back_from_the_old_container(dtype: DType, shape: tuple[int, ...], open_bytes: Open) -> None:
    tensors = {"a": numbers(dtype, *shape), "b": torch.ones(2)}  # the oracle: torch itself cannot load all of these
    checkpoint = open_bytes(saved(tensors, legacy=True))
    assert checkpoint.container == "torch legacy"
    assert_holds(checkpoint, tensors)


@pytest.mark.parametrize("tensors", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_kind_of_view_reads_back_from_the_old_container(
    tensors: Tensors, protocol: int, open_bytes: Open
) -> None:
    file = saved(tensors, legacy=True, protocol=protocol)
    assert_holds(open_bytes(file), loaded(file))


@pytest.mark.parametrize("protocol", [4, 5])
def test_the_old_container_opens_under_later_pickle_protocols(protocol: int, open_bytes: Open) -> None:
    assert_holds(open_bytes(saved(VIEWS["plain"], legacy=True, protocol=protocol)), VIEWS["plain"])


def test_tied_tensors_of_the_old_container_have_one_place(open_bytes: Open) -> None:
    spans = open_bytes(saved(VIEWS["tied"], legacy=True)).tensors
    assert spans["a"].storage_key == spans["b"].storage_key


def test_storages_are_found_in_the_order_of_the_list_not_of_the_names(open_bytes: Open) -> None:
    root = {"a": tensor(held=storage("a", 1), shape=(1,)), "b": tensor(held=storage("b", 2), shape=(2,))}
    storages = struct.pack("<qffqf", 2, 1, 2, 1, 3)
    spans = open_bytes(torch_legacy(root, storages, keys=["b", "a"])).tensors
    assert content(spans["b"]) == struct.pack("<ff", 1, 2)
    assert content(spans["a"]) == struct.pack("<f", 3)


@pytest.mark.parametrize("kind", sorted(odd_tensors().keys() - {"quantized", "complex128"}))
def test_a_tensor_of_the_old_container_that_is_no_byte_range_is_told_apart(kind: str, open_bytes: Open) -> None:
    odd, reason = odd_tensors()[kind]
    checkpoint = open_bytes(saved({"plain": torch.ones(2), "odd": odd}, legacy=True))
    assert_holds(checkpoint, {"plain": torch.ones(2)})
    assert reason in checkpoint.unreadable["odd"]


@pytest.mark.parametrize("kind", ["quantized", "complex128"])
def test_a_storage_of_unknown_size_is_refused_since_what_follows_cannot_be_found(kind: str, open_bytes: Open) -> None:
    odd, _ = odd_tensors()[kind]
    with pytest.raises(CheckpointError, match=r"cannot tell the size of .*Storage; load the file with torch"):
        open_bytes(saved({"plain": torch.ones(2), "odd": odd}, legacy=True))


def test_an_assembled_file_opens(open_bytes: Open) -> None:
    assert content(open_bytes(GOOD).tensors["a"]) == FOUR_FLOATS


# what nobody writes
HUGE = 10**5000
"""More digits than Python turns into text."""

REFUSED = {
    "a count below the pickle's": (torch_legacy(STATE, struct.pack("<q", 3) + FOUR_FLOATS), "3 elements by its own"),
    "a count above the pickle's": (torch_legacy(STATE, struct.pack("<q", 5) + FOUR_FLOATS), "5 elements by its own"),
    "a negative count": (torch_legacy(STATE, struct.pack("<q", -4) + FOUR_FLOATS), "-4 elements by its own"),
    "a negative count in the pickle": (
        torch_legacy({"a": tensor(held=storage(count=-4))}, struct.pack("<q", -4)), "expected one of torch's"
    ),
    "two counts past the end": (
        torch_legacy({"a": tensor(held=storage(count=9))}, struct.pack("<q", 9) + FOUR_FLOATS), "cut short"
    ),
    "two huge counts": (
        torch_legacy({"a": tensor(held=storage(count=1 << 62))}, struct.pack("<q", 1 << 62)), "cut short"
    ),
    "a count past 64 bits": (torch_legacy({"a": tensor(held=storage(count=HUGE))}), "weights"),
    "no storages": (torch_legacy(STATE, b""), "cut short"),
    "half a count": (torch_legacy(STATE, COUNT[:4]), "cut short"),
    "an element too few": (torch_legacy(STATE, COUNT + FOUR_FLOATS[:-1]), "cut short"),
    "the flag of a big-endian machine": (torch_legacy(STATE, system=SYSTEM | {"little_endian": False}), "big-endian"),
    "no word on the byte order": (torch_legacy(STATE, system={}), "weights"),
    "system information that is a list": (torch_legacy(STATE, system=[]), "weights"),
    "another protocol version": (torch_legacy(STATE, version=1000), "not a checkpoint that torch.save wrote"),
    "a list of storages without the tensor's": (torch_legacy(STATE, keys=["1"]), "does not match its tensors"),
    "an empty list of storages": (torch_legacy(STATE, keys=[]), "does not match its tensors"),
    "a storage listed twice": (torch_legacy(STATE, keys=["0", "0"]), "does not match its tensors"),
    "a list of storages that is a dict": (torch_legacy(STATE, keys={"0": "0"}), "does not match its tensors"),
    "a listed storage that no tensor uses": (torch_legacy(STATE, keys=["0", "1"]), "a storage that no tensor uses"),
    "a listed number of many digits": (torch_legacy(STATE, keys=["0", HUGE]), "weights"),
    "a listed tuple of tuples": (torch_legacy(STATE, keys=["0", nested(100_000)]), "weights"),
    "a listed tuple that takes long to print": (torch_legacy(STATE, keys=["0", laughs(16)]), "weights"),
    "one storage of two types": (
        torch_legacy({"a": tensor(), "b": tensor(held=storage(kind=Name("torch", "IntStorage")))}), "in two ways"
    ),
    "one storage of two sizes": (torch_legacy({"a": tensor(), "b": tensor(held=storage(count=5))}), "in two ways"),
    "a storage that is a view": (
        torch_legacy({"a": tensor(held=storage("0", 4, Name("torch", "FloatStorage"), ("1", 0, 4)))}), "torch < 0.4"
    ),
    "a view past its storage": (torch_legacy({"a": tensor((5,))}), "'a' reaches past the end of its storage"),
    "a view into the next storage": (
        torch_legacy(
            {"a": tensor((8,)), "b": tensor(held=storage("1"))}, (COUNT + FOUR_FLOATS) * 2, keys=["0", "1"]
        ),
        "'a' reaches past the end of its storage",
    ),
    "a view before its storage": (torch_legacy({"a": tensor(offset=-2)}), "not a valid view"),
    "no root": (b"".join(map(pickled, (MAGIC_NUMBER, 1001, SYSTEM))), "malformed"),
    "no list of storages": (b"".join(map(pickled, (MAGIC_NUMBER, 1001, SYSTEM, STATE))), "malformed"),
    "text of 2 ** 62 bytes": (torch_legacy(Opcodes(b"\x8d" + struct.pack("<Q", 1 << 62))), "malformed"),
    "bytes of 2 ** 62 bytes": (torch_legacy(Opcodes(b"\x8e" + struct.pack("<Q", 1 << 62))), "malformed"),
    "a bytearray of 2 ** 62 bytes": (torch_legacy(Opcodes(b"\x96" + struct.pack("<Q", 1 << 62))), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_old_container_that_lies_is_refused(file: bytes, reason: str, open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match=reason):
        open_bytes(file)


def test_every_refusal_of_an_old_container_names_the_file(open_bytes: Open) -> None:
    assert [why for why, (file, _) in REFUSED.items() if not names_the_file(open_bytes, file)] == []


def test_an_old_container_cut_short_anywhere_is_refused(open_bytes: Open) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(CheckpointError):
            open_bytes(GOOD[:length])


def test_another_magic_number_is_not_an_old_container(open_bytes: Open) -> None:
    with pytest.raises(CheckpointError, match="a pickle, but not one that torch"):
        open_bytes(torch_legacy(STATE, magic=MAGIC_NUMBER - 1))
