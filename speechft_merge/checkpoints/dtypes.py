"""Defines the element types, under safetensors' names."""

from __future__ import annotations

from enum import Enum


class DType(Enum):
    """An element type that a checkpoint can hold: safetensors' name is the member's name."""

    F64 = (8, "float64")
    F32 = (4, "float32")
    F16 = (2, "float16")
    BF16 = (2, "bfloat16")
    F8_E4M3 = (1, "float8_e4m3fn")
    F8_E5M2 = (1, "float8_e5m2")
    F8_E8M0 = (1, "float8_e8m0fnu")
    I64 = (8, "int64")
    I32 = (4, "int32")
    I16 = (2, "int16")
    I8 = (1, "int8")
    U64 = (8, "uint64")
    U32 = (4, "uint32")
    U16 = (2, "uint16")
    U8 = (1, "uint8")
    BOOL = (1, "bool")
    C64 = (8, "complex64")

    def __init__(self, itemsize: int, torch_name: str) -> None:
        self.itemsize = itemsize
        self.torch_name = torch_name

    @property
    def interpolated(self) -> bool:
        """Whether arithmetic on it means anything: integers, booleans, 8-bit floats and complex numbers are copied."""
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16)

    @property
    def continuous(self) -> bool:
        """Whether it is of real or complex numbers, as weights are; integers and booleans count, number or mask."""
        return self.interpolated or self.name.startswith(("F8_", "C"))
