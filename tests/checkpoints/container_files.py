"""Files for the tests of this folder: what torch.save writes, and what no library would write."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import safetensors
import torch

from speechft_merge.checkpoints import Checkpoint, DType, TensorSpan
from speechft_merge.checkpoints.torch_legacy import MAGIC_NUMBER, PROTOCOL_VERSION

Open = Callable[[bytes], Checkpoint]
Tensors = Mapping[str, torch.Tensor]


# what comes out
def content(span: TensorSpan) -> bytes:
    return span.source.read(span.offset, span.nbytes)


def row_major(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().clone().untyped_storage())


def torch_dtype(dtype: DType) -> torch.dtype:
    known = getattr(torch, dtype.torch_name)
    assert isinstance(known, torch.dtype)
    return known


def assert_holds(checkpoint: Checkpoint, tensors: Tensors) -> None:
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, span in checkpoint.tensors.items():
        assert torch_dtype(span.dtype) == tensors[name].dtype, name
        assert span.shape == tuple(tensors[name].shape), name
        assert content(span) == row_major(tensors[name]), name


def names_the_file(open_bytes: Open, file: bytes) -> bool:
    """Whether the refusal of a file says which file."""
    try:
        open_bytes(file)
    except ValueError as error:
        return "weights" in str(error)
    return False


def deserialize(file: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What the safetensors library reads: (name, dtype, shape and data)."""
    told: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    return told


# what torch writes
def saved(value: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def loaded(file: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(io.BytesIO(file), weights_only=True)


def numbers(dtype: DType, *shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch_dtype(dtype))


def _attributed() -> torch.Tensor:
    tensor = torch.arange(5.0)
    tensor.origin = "somewhere"  # type: ignore[attr-defined]
    return tensor


_TABLE = torch.arange(60.0).reshape(5, 12)

VIEWS: dict[str, Tensors] = {
    "plain": {"a": torch.arange(12.0).reshape(3, 4), "b.c": torch.arange(3)},
    "tied": {"a": _TABLE, "b": _TABLE},
    "transposed": {"a": _TABLE.T},
    "permuted": {"a": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1)},
    "sliced from an offset": {"a": _TABLE[2:4], "b": _TABLE[1]},
    "sliced with a step": {"a": _TABLE[::2, 1::3], "b": _TABLE[:, 3]},
    "expanded": {"a": torch.arange(3.0).expand(4, 3), "b": torch.tensor(1.5).expand(2, 2)},
    "0-dimensional": {"a": torch.tensor(7), "b": _TABLE[3, 3]},
    "empty": {"a": torch.empty(0), "b": torch.empty(3, 0, 2), "c": torch.tensor([1])},
    "parameter": {"a": torch.nn.Parameter(torch.arange(4.0)), "b": torch.nn.Parameter(_TABLE.T)},
    "with attributes": {"a": _attributed()},
    "overlapping windows": {"a": torch.arange(9).unfold(0, 3, 1)},
}


def odd_tensors() -> dict[str, tuple[torch.Tensor, str]]:
    """Tensors that are no byte range: kind -> (one, what is said of it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse CSR: beta; quantized: deprecated; nested: prototype
        return {
            "sparse": (torch.eye(3).to_sparse(), "sparse"),
            "sparse CSR": (torch.eye(3).to_sparse_csr(), "sparse"),
            "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
            "quantized": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
            "complex128": (torch.ones(2, dtype=torch.complex128), "ComplexDoubleStorage"),
            "meta": (torch.ones(3, device="meta"), "without data"),
            "conjugate": (torch.ones(2, dtype=torch.complex64).conj(), "conj"),
            "negative": (torch.ones(2, dtype=torch.complex64).conj().imag, "neg"),
        }


# what nobody writes: pickles
class Name(NamedTuple):
    """A class or function, by GLOBAL."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call, by REDUCE."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Persistent:
    """A persistent id, by BINPERSID."""

    id: object


@dataclass(frozen=True, eq=False)
class Opcodes:
    """Opcodes that leave one object on the stack."""

    code: bytes


def opcodes(value: object) -> bytes:
    """Those that make the value; memo keys below 256 may be overwritten."""
    match value:
        case Opcodes(code):
            return code
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + b"R"
        case Persistent(persistent_id):
            return opcodes(persistent_id) + b"Q"
        case dict():
            return b"}" + b"".join(opcodes(key) + opcodes(item) + b"s" for key, item in value.items())
        case list():
            return b"]" + b"".join(opcodes(item) + b"a" for item in value)
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]


def pickled(value: object) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


def laughs(levels: int) -> Opcodes:
    """A tuple of 2 ** levels leaves in a few bytes per level."""
    return Opcodes(b"N" + b"2\x86" * levels)


def nested(levels: int, wrap: bytes = b"\x85") -> Opcodes:
    """A tuple of a tuple of a tuple ..."""
    return Opcodes(b"N" + wrap * levels)


FLOATS = Name("torch", "FloatStorage")


def storage(key: object = "0", count: object = 4, kind: object = FLOATS, *rest: object) -> Persistent:
    return Persistent(("storage", kind, key, "cpu", count, *rest))


def tensor(
    shape: object = (4,), strides: object = (1,), offset: object = 0, held: object = None, *more: object
) -> Call:  # fmt: skip
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Name("collections", "OrderedDict"), ())
    return Call(rebuild, (held or storage(), offset, shape, strides, False, hooks, *more))


# what nobody writes: containers
FOUR_FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def safetensors_file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: object, end: object, shape: object = None, dtype: object = "U8") -> dict[str, object]:
    if shape is None:
        assert isinstance(begin, int)
        assert isinstance(end, int)
        shape = [end - begin]
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zip_file(records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return buffer.getvalue()


def torch_zip(root: object, records: Mapping[str, bytes] | None = None) -> bytes:
    """A zip checkpoint of `root`, assembled; with storage 0 of four floats unless other records are given."""
    rest = {"data/0": FOUR_FLOATS} if records is None else records
    parts = {"data.pkl": pickled(root), "byteorder": b"little", **rest}
    return zip_file({f"model/{name}": record for name, record in parts.items()})


SYSTEM = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def torch_legacy(
    root: object,
    storages: bytes = struct.pack("<q", 4) + FOUR_FLOATS,
    *,
    keys: object = ("0",),
    magic: object = MAGIC_NUMBER,
    version: object = PROTOCOL_VERSION,
    system: object = SYSTEM,
) -> bytes:
    """A legacy checkpoint of `root`, assembled; with storage 0 of four floats unless other bytes are given."""
    keys = list(keys) if isinstance(keys, tuple) else keys
    return b"".join(map(pickled, (magic, version, system, root, keys))) + storages
