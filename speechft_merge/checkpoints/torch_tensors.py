"""Finds the tensors in a torch pickle: which calls build one, and the byte range of each.

Source of the call signatures: torch/_utils.py and torch/storage.py of torch 0.4 to 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.index import TensorSpan
from speechft_merge.checkpoints.pickle_data import Symbol, name_of
from speechft_merge.checkpoints.safetensors import MAX_RANK, is_size
from speechft_merge.checkpoints.strided import strided
from speechft_merge.errors import CheckpointError, quote
from speechft_merge.sources import ByteSource

_STORAGES = {
    "DoubleStorage": DType.F64,
    "FloatStorage": DType.F32,
    "HalfStorage": DType.F16,
    "BFloat16Storage": DType.BF16,
    "LongStorage": DType.I64,
    "IntStorage": DType.I32,
    "ShortStorage": DType.I16,
    "CharStorage": DType.I8,
    "ByteStorage": DType.U8,
    "BoolStorage": DType.BOOL,
    "ComplexFloatStorage": DType.C64,
}
_TORCH_DTYPES = {Symbol("torch", dtype.torch_name): dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class Storage:
    """One block of elements that tensors are views of."""

    key: str
    dtype: DType | None
    """None: the bytes have no type of their own, or one that is not known here."""
    type_name: str
    count: int
    """Elements; bytes when the storage is untyped."""

    @property
    def itemsize(self) -> int:
        """Bytes of one counted element."""
        return self.dtype.itemsize if self.dtype else 1


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as torch pickles it: a strided view of a storage. Offset and strides count elements."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OddTensor:
    """A tensor that is not a strided view of known elements, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The object that a file of torch.save's holds, and where its storages lie."""

    container: str
    source: ByteSource
    root: Any
    records: dict[str, tuple[int, int]]
    """Record -> (offset in the file, bytes held)."""
    folder: str = ""
    """Prefix of a storage's key in the name of its record."""

    def within(self, source: ByteSource, offset: int, archive: str) -> TorchFile:
        """Return the same as it lies in an archive that has this file at `offset`."""
        records = {name: (start + offset, held) for name, (start, held) in self.records.items()}
        return replace(self, container=f"{self.container} in {archive}", source=source, records=records)

    def locate(self, storage: Storage) -> tuple[int, int]:
        """Return offset and bytes held of a storage.

        Raises:
            CheckpointError: the file has no such record.
        """
        record = self.folder + storage.key
        if record not in self.records:
            raise CheckpointError(f"{self.source.name}: the record {record[:80]} is missing")
        return self.records[record]


def storage_of(persistent_id: object) -> object:
    """Return the storage that a persistent id of torch names: ('storage', type, key, location, count, ...).

    Files before torch 1.6 also have ('module', class, source file, source): that is the class, its name and no more.

    Raises:
        CheckpointError: the id is not of this form.
    """
    match persistent_id:
        case ("storage", Symbol(module, name), str(key), _, int(count), *rest) if (
            module.startswith("torch") and count >= 0
        ):
            if rest and rest[0] is not None:
                raise CheckpointError(
                    "storages that are views of others (torch < 0.4) are not supported",
                    hint="load the file with an old torch and save it again",
                )
            return Storage(key, _STORAGES.get(name), name, count)
        case ("module", Symbol() as cls, *_):
            return cls
    raise CheckpointError(f"its pickle refers to a {name_of(persistent_id)}, expected one of torch's storages")


def _view(
    storage: object, offset: object, shape: object, strides: object, dtype: DType | None = None
) -> TensorView | OddTensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor's storage is missing in the pickle")
    sizes, steps = _sizes(shape), _sizes(strides)
    if not is_size(offset) or len(sizes) != len(steps):
        raise CheckpointError(
            f"a tensor of shape {quote(sizes)} and strides {quote(steps)}: not a valid view of a storage"
        )
    if dtype is None and storage.dtype is None:
        return OddTensor(f"elements of type {storage.type_name} are not supported")
    return TensorView(storage, dtype or storage.dtype, offset, sizes, steps)  # type: ignore[arg-type]


def _rebuild_v2(
    storage: object, offset: object, shape: object, strides: object, _grad: object = None, _hooks: object = None,
    metadata: object = None,
) -> object:  # fmt: skip
    if isinstance(metadata, dict) and any(metadata.values()):
        return OddTensor("a lazy view (conj or neg)")
    return _view(storage, offset, shape, strides)


def _rebuild_v3(storage: object, offset: object, shape: object, strides: object, *rest: object) -> object:
    """Rebuild a tensor from its arguments in a pickle: (..., requires_grad, hooks, dtype[, metadata])."""
    _, _, dtype, metadata = rest if len(rest) == 4 else (*rest, None)
    if isinstance(metadata, dict) and any(metadata.values()):
        return OddTensor("a lazy view (conj or neg)")
    known = _TORCH_DTYPES.get(dtype) if isinstance(dtype, Symbol) else None
    if known is None:
        return OddTensor(f"elements of type {name_of(dtype)} are not supported")
    return _view(storage, offset, shape, strides, known)


def _rebuild_typed(function: object, _type: object, arguments: object, _state: object) -> object:
    """Rebuild as torch._tensor._rebuild_from_type_v2 does: with attributes, or of a subclass (mergekit issue 243)."""
    constructor = CONSTRUCTORS.get(function) if isinstance(function, Symbol) else None
    if constructor is None or constructor is _rebuild_typed or not isinstance(arguments, tuple):
        return OddTensor(f"it is rebuilt by {name_of(function)}")
    return constructor(*arguments)


def _odd(kind: str) -> Callable[..., object]:
    return lambda *_: OddTensor(f"it is {kind}")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return {key: value for key, value in pairs if isinstance(key, str)}


def _torch_utils(name: str) -> Symbol:
    return Symbol("torch._utils", name)


CONSTRUCTORS: dict[Symbol, Callable[..., object]] = {
    _torch_utils("_rebuild_tensor"): lambda storage, offset, shape, strides: _view(storage, offset, shape, strides),
    _torch_utils("_rebuild_tensor_v2"): _rebuild_v2,
    _torch_utils("_rebuild_tensor_v3"): _rebuild_v3,
    _torch_utils("_rebuild_parameter"): lambda data, *_: data,
    _torch_utils("_rebuild_parameter_with_state"): lambda data, *_: data,
    _torch_utils("_rebuild_sparse_tensor"): _odd("sparse"),
    _torch_utils("_rebuild_sparse_csr_tensor"): _odd("sparse"),
    _torch_utils("_rebuild_nested_tensor"): _odd("nested"),
    _torch_utils("_rebuild_qtensor"): _odd("quantized"),
    _torch_utils("_rebuild_meta_tensor_no_storage"): _odd("without data (device meta)"),
    _torch_utils("_rebuild_device_tensor_from_numpy"): _odd("pickled by way of numpy"),
    _torch_utils("_rebuild_wrapper_subclass"): _odd("a wrapper of other tensors"),
    Symbol("torch._tensor", "_rebuild_from_type_v2"): _rebuild_typed,
    Symbol("torch", "Size"): lambda sizes: _sizes(sizes),
    Symbol("collections", "OrderedDict"): _ordered_dict,
}
"""What a pickle may call: functions of ours, by the names of torch's."""


def span_of(view: TensorView, name: str, source: ByteSource, start: int, held: int) -> TensorSpan:
    """Return the byte range of a view into a storage of `held` bytes that starts at byte `start` of the file.

    Raises:
        CheckpointError: the view reaches outside its storage, or is a large one that is not contiguous.
    """
    itemsize, elements = view.dtype.itemsize, math.prod(view.shape)
    if not elements:
        return TensorSpan(source, start, view.dtype, view.shape)
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.strides, strict=True))
    if (last + 1) * itemsize > held:
        raise CheckpointError(
            f"{source.name}: tensor {quote(name)} reaches past the end of its storage "
            f"(element {last} of {held // itemsize}): damaged or forged"
        )
    begin = start + view.offset * itemsize
    if _is_contiguous(view.shape, view.strides):
        return TensorSpan(source, begin, view.dtype, view.shape)
    extent = (last + 1 - view.offset) * itemsize
    return strided(source, name, begin, extent, view.dtype, view.shape, view.strides)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_RANK or not all(map(is_size, value)):
        raise CheckpointError(f"a {name_of(value)} is not a shape or stride of a tensor")
    return tuple(value)
