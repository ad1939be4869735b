"""Whatever the bytes are, a file is opened or refused, soon and in little memory."""

import argparse
import collections
import contextlib
import json
import random
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from container_files import (
    VIEWS,
    Call,
    Name,
    Open,
    content,
    deserialize,
    entry,
    odd_tensors,
    pickled,
    safetensors_file,
    saved,
    storage,
    tensor,
    torch_zip,
    zip_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from speechft_merge.checkpoints import DType
from speechft_merge.checkpoints.torch_legacy import MAGIC
from speechft_merge.errors import SpeechFTMergeError
from speechft_merge.sources import LocalFile

# what Python's pickletools says about backslashes in text of Python 2
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
IN_LITTLE_MEMORY = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, bounds the address space")

SECONDS = 2.0
"""Far more than a file of a few kilobytes takes, on a machine with other things to do."""

LIGHTNING = {"epoch": 3, "state_dict": VIEWS["plain"], "optimizer_states": [{"state": {0: {"step": 1}}}]}
ROOTS: list[object] = [VIEWS["plain"], VIEWS["tied"], VIEWS["sliced with a step"], VIEWS["empty"], LIGHTNING]
ROOTS.append({"a": torch.ones(2), "odd": odd_tensors()["sparse"][0], "fp8": torch.ones(2).to(torch.float8_e5m2)})
ARRAY = np.arange(6, dtype=">f4").reshape(2, 3)
ROOTS += [{"n": ARRAY, "f": np.asfortranarray(ARRAY), b"k": ARRAY[0]}, argparse.Namespace(m=VIEWS["plain"])]
ROOTS += [collections.deque([("e", 3), ("m", collections.Counter(VIEWS["tied"]))]), list(VIEWS["plain"].items())]
SAFETENSORS = [save({"a": torch.arange(3), "b": torch.ones(2, 2), "c": torch.tensor(True)}, {"format": "pt"})]
SAFETENSORS += [save({"a": torch.empty(0)}), safetensors_file({"b": entry(0, 2), "a": entry(2, 3)}, b"123")]
CONTAINERS = {
    "safetensors": SAFETENSORS,
    "torch zip": [saved(root) for root in ROOTS] + [torch_zip({"a": tensor()})],
    "torch legacy": [saved(root, legacy=True) for root in ROOTS],
}
TYPED = Name("torch._tensor", "_rebuild_from_type_v2")
PICKLES = [
    pickled({"a": tensor(), "b": tensor((2, 2), (1, 2)), "n": 3, "l": [1, (2.5, None)]}),
    pickled({"model": {"a": tensor((2,), (2,), 1)}, "args": Call(Name("argparse", "Namespace"), ())}),
    pickled({"a": Call(TYPED, (tensor().function, 0, tensor().arguments, {}))}),
    pickled({"a": Call(Name("torch._utils", "_rebuild_parameter"), (tensor(), True, {})), "s": storage()}),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A file with a few bytes flipped, cut out, doubled, put in, or with its end cut off."""
    file = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(file)))
        end = min(len(file), start + draw(st.integers(1, 12)))
        match draw(st.sampled_from(["flip", "number", "cut out", "double", "put in", "cut off"])):
            case "flip":
                file[start:end] = bytes(byte ^ draw(st.integers(1, 255)) for byte in file[start:end])
            case "number":
                number = draw(st.sampled_from([0, 1, 255, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]))
                file[start : start + 8] = struct.pack("<Q", number)
            case "cut out":
                del file[start:end]
            case "double":
                file[start:start] = file[start:end]
            case "put in":
                file[start:start] = draw(st.binary(min_size=1, max_size=8))
            case "cut off":
                del file[start:]
    return bytes(file)


def assert_opened_or_refused(open_bytes: Open, file: bytes) -> None:
    started = time.process_time()
    checkpoint = None
    with contextlib.suppress(SpeechFTMergeError):
        checkpoint = open_bytes(file)
    assert time.process_time() - started < SECONDS
    if checkpoint is None:
        return
    assert checkpoint.tensors
    for span in checkpoint.tensors.values():
        if isinstance(span.source, LocalFile):
            assert 0 <= span.offset <= span.offset + span.nbytes <= span.source.size == len(file)
        if span.nbytes < 1 << 20:
            assert len(content(span)) == span.nbytes


def packed(code: bytes) -> bytes:
    """A pickle in a zip with the right checksum, which would hide it otherwise."""
    return zip_file({"m/data.pkl": code, "m/data/0": bytes(16)})


@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=250)
@given(data=st.data())
def test_a_damaged_file_is_opened_or_refused(open_bytes: Open, container: str, data: st.DataObject) -> None:
    assert_opened_or_refused(open_bytes, data.draw(mutated(CONTAINERS[container])))


@settings(max_examples=300)
@given(mutated(PICKLES))
def test_a_damaged_pickle_with_the_right_checksum_is_opened_or_refused(open_bytes: Open, code: bytes) -> None:
    assert_opened_or_refused(open_bytes, packed(code))


@pytest.mark.parametrize(
    "magic", [b"PK\x03\x04", b"\x80\x02" + MAGIC, b"\x80\x04" + MAGIC, b"\x40\0\0\0\0\0\0\0{", b""]
)
@settings(max_examples=100)
@given(rest=st.binary(max_size=200))
def test_any_bytes_behind_a_known_beginning_are_opened_or_refused(open_bytes: Open, magic: bytes, rest: bytes) -> None:
    assert_opened_or_refused(open_bytes, magic + rest)


# headers that are JSON, and nearly right
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([dtype.name for dtype in DType]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2).map(sorted) | JSON,
    }
)
HEADER = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=3), ENTRY | JSON, max_size=3)


@settings(max_examples=300)
@given(HEADER | JSON, st.binary(max_size=16))
def test_any_header_is_read_or_refused(open_bytes: Open, header: object, body: bytes) -> None:
    assert_opened_or_refused(open_bytes, safetensors_file(header, body))


def assert_read_as_the_library_reads_it(open_bytes: Open, file: bytes) -> None:
    try:
        checkpoint = open_bytes(file)
    except SpeechFTMergeError:
        return
    told = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(file)}
    ours = {name: (span.dtype.name, span.shape, content(span)) for name, span in checkpoint.tensors.items()}
    assert ours == told


@settings(max_examples=250)
@given(mutated(SAFETENSORS))
def test_what_is_read_of_a_damaged_file_the_library_reads_alike(open_bytes: Open, file: bytes) -> None:
    assert_read_as_the_library_reads_it(open_bytes, file)


@settings(max_examples=250)
@given(st.data())
def test_what_is_read_of_a_damaged_header_the_library_reads_alike(open_bytes: Open, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(SAFETENSORS))
    (length,) = struct.unpack("<Q", file[:8])
    header = data.draw(mutated([file[8 : 8 + length]]))
    assert_read_as_the_library_reads_it(open_bytes, safetensors_file(header, file[8 + length :]))


# the same for longer
def roughly(random_: random.Random, original: bytes) -> bytes:
    """As `mutated`, many times faster and without a way back to the shortest example."""
    file = bytearray(original)
    for _ in range(random_.randint(1, 3)):
        start = random_.randint(0, len(file))
        end = start + random_.choice([1, 1, 2, 4, 8, 40])
        changes: list[Callable[[], bytes]] = [
            lambda: bytes(byte ^ 1 << random_.randrange(8) for byte in file[start:end]),  # noqa: B023
            lambda: random_.randbytes(end - start),  # noqa: B023
            lambda: bytes(file[start:end]) * 2,  # noqa: B023
            lambda: b"",
            lambda: struct.pack("<Q", random_.choice([0, 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1])),
        ]
        file[start:end] = random_.choice(changes)()
    return bytes(file) if random_.random() < 0.9 else bytes(file[: random_.randint(0, len(file))])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_damaged_files_are_opened_or_refused(seed: int, open_bytes: Open) -> None:
    random_ = random.Random(seed)
    files = [file for files in CONTAINERS.values() for file in files]
    for _ in range(800):
        assert_opened_or_refused(open_bytes, roughly(random_, random_.choice(files)))
        assert_opened_or_refused(open_bytes, packed(roughly(random_, random_.choice(PICKLES))))


OPEN_ALL = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from speechft_merge.checkpoints import open_checkpoint
    from speechft_merge.errors import SpeechFTMergeError
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = refused = 0
    for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            open_checkpoint(str(path)).close()
            opened += 1
        except SpeechFTMergeError:
            refused += 1
        except BaseException as error:
            sys.exit(f"{path.name}: {type(error).__name__}: {str(error)[:200]}")
    print(opened, refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
)


def open_all(folder: Path) -> tuple[int, int, int]:
    """How many files were opened and refused, and the KiB of memory that it took, in a process that has little."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    opened, refused, growth = map(int, done.stdout.split())
    return opened, refused, growth


@IN_LITTLE_MEMORY
@pytest.mark.slow
def test_hundreds_of_damaged_files_take_little_memory(tmp_path: Path) -> None:
    random_ = random.Random(0)
    for number in range(600):
        file = roughly(random_, random_.choice(random_.choice(list(CONTAINERS.values()))))
        (tmp_path / f"{number:03}").write_bytes(file)
        (tmp_path / f"{number:03}p").write_bytes(packed(roughly(random_, random_.choice(PICKLES))))
    opened, refused, growth = open_all(tmp_path)
    assert opened > 50
    assert refused > 50
    assert growth < 32 << 10


SPARSE = 3 << 30
"""Bytes of a file that takes none on disk."""


def central_directory(size: int) -> bytes:
    """The end of a zip file whose central directory has that size (APPNOTE.TXT 4.3.14 to 4.3.16)."""
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + size, 1)
    return end64 + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


LARGE = {
    "a name without an end": (b"\x80\x02" + MAGIC + b"\x80\x02c", b""),
    "a number without an end": (b"\x80\x02" + MAGIC + b"\x80\x02I", b""),
    "text as long as the file": (b"\x80\x02" + MAGIC + b"\x80\x02\x8d" + struct.pack("<Q", SPARSE - 100), b""),
    "bytes of 2 ** 40": (b"\x80\x02" + MAGIC + b"\x80\x02\x8e" + struct.pack("<Q", 1 << 40), b""),
    "a number of 2 ** 31 bytes": (b"\x80\x02" + MAGIC + b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1), b""),
    "a frame as long as the file": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + MAGIC, b""),
    "a header as long as the file": (struct.pack("<Q", SPARSE - 8) + b"{", b""),
    "a header that is mostly nothing": (struct.pack("<Q", 90_000_000) + b'{"a":', b""),
    "a central directory as long as the file": (b"PK\x03\x04", central_directory(SPARSE - 4)),
    "a zip file without an end": (b"PK\x03\x04", b""),
    "nothing": (b"", b""),
}


@IN_LITTLE_MEMORY
@pytest.mark.slow
@pytest.mark.parametrize(("start", "end"), LARGE.values(), ids=LARGE)
def test_a_huge_file_of_nothing_is_refused_in_little_memory(start: bytes, end: bytes, tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        file.write(start)
        file.truncate(SPARSE)
        file.seek(SPARSE)
        file.write(end)
    opened, refused, growth = open_all(tmp_path)
    assert (opened, refused) == (0, 1)
    assert growth < 220 << 10


@IN_LITTLE_MEMORY
@pytest.mark.slow
def test_a_huge_index_of_shards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "b"}}))
    with path.open("r+b") as file:
        file.truncate(SPARSE)
    assert open_all(tmp_path)[:2] == (0, 1)
