"""Defines what makes the bytes of an output: a copy of a span, or a mix of several. Data only; see the executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from speechft_merge.checkpoints.dtypes import DType
    from speechft_merge.checkpoints.index import TensorSpan


class Copy(NamedTuple):
    """The elements of one span as they are, rounded if the output has another dtype."""

    span: TensorSpan

    @property
    def inputs(self) -> tuple[TensorSpan, ...]:
        """The spans that must be read."""
        return (self.span,)


class Term(NamedTuple):
    """One fine-tune's share of an interpolation."""

    span: TensorSpan
    weight: float
    """Of a mean they sum to 1, or to less if some fine-tune lacks the tensor; of task arithmetic to anything."""
    model: int
    """The fine-tune, by its position in the call."""


class Interpolate(NamedTuple):
    """base + alpha * sum of weight * (term - base)."""

    base: TensorSpan
    terms: tuple[Term, ...]
    alpha: float
    stock: int = 0
    """Model Stock: the number of fine-tunes, by whose ratio, yet to be estimated, alpha is multiplied; 0: none is."""

    @property
    def inputs(self) -> tuple[TensorSpan, ...]:
        """The spans that must be read, the base first."""
        return (self.base, *(term.span for term in self.terms))


Operation = Copy | Interpolate


class Segment(NamedTuple):
    """A byte range of an output file and the operation that makes it."""

    offset: int
    """Where in the file it begins."""
    operation: Operation
    dtype: DType
    """Element type in the file."""
    name: str = ""
    """The tensor; empty for bytes of a copied file that belong to no tensor of the model."""

    @property
    def elements(self) -> int:
        """Number of elements, in the output and in every input."""
        return self.operation.inputs[0].elements

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.elements * self.dtype.itemsize
