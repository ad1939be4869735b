"""Adds a product of two small matrices to a weight while it is read: W + scale * B A.

The product is summed over the rank in ascending order in float64, in which a product of two float32 numbers is exact,
and never by BLAS, whose order differs between machines: a merge has the same bytes on all of them. The sum with W is
rounded once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.adapters.settings import MERGE
from speechft_merge.checkpoints.computed import LIMIT, RECENT, Derived
from speechft_merge.checkpoints.rounding import read_numbers
from speechft_merge.errors import MismatchError, quote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.checkpoints.index import TensorSpan

    Matrix = NDArray[np.float64]
    Shape = tuple[int, ...]

BLOCK = 1 << 15
"""Numbers that are summed at once: they stay in a core's cache while the rank is gone through."""


def fits(weight: Shape, left: Shape, right: Shape) -> bool:
    """Return whether the product of two factors has as many elements as a weight, in its order or transposed."""
    rows, rank = (*left, 0, 0)[:2]
    columns = math.prod(right) // rank if rank else 0
    order = len(weight) > 2 and rows % weight[0] == 0 if weight and weight[0] else False
    return (
        (order or weight in ((rows, columns), (columns, rows)))
        and (math.prod(left), math.prod(right)) == (rows * rank, rank * columns)
        and right[:1] == (rank,)
        and rows * columns == math.prod(weight)
    )


class LowRank(Derived):
    """A weight with a change of low rank added."""

    def __init__(
        self, name: str, parent: TensorSpan, left: TensorSpan, right: TensorSpan, scale: float, transposed: bool
    ) -> None:
        """Take a weight and the two factors of its change.

        Args:
            name: of the weight, for messages.
            parent: the weight, of any shape.
            left: B, of shape (rows, rank); of a convolution with ones after these.
            right: A, of shape (rank, columns); of a convolution the columns have several axes.
            scale: of the product, whose elements are the weight's in their order.
            transposed: whether a square weight has them in the order of the transposed product; of others the shape
                tells.

        Raises:
            MismatchError: the shapes do not fit, or the factors are too large to be kept.
        """
        super().__init__(name, parent, (left.source, right.source))
        self._factors, self.scale = (left, right), scale
        shapes = f"its matrices have the shapes {quote(list(left.shape))} and {quote(list(right.shape))}"
        numbers = all(span.dtype.interpolated for span in (parent, left, right))
        if not numbers or not fits(parent.shape, left.shape, right.shape):
            raise MismatchError(
                f"the LoRA on {quote(name)} does not fit: {shapes}, the weight {quote(list(parent.shape))}",
                hint="check that the base is the model that it was trained on",
            )
        if (left.elements + right.elements) * 8 > LIMIT:
            raise MismatchError(
                f"the LoRA on {quote(name)} is too large: {shapes}, at most {LIMIT >> 23}M numbers are kept in memory",
                hint=MERGE,
            )
        rows, columns = left.shape[0], right.elements // right.shape[0]
        self.transposed = (columns, rows) == parent.shape and (transposed or rows != columns)

    def change(self, values: Matrix, first: int) -> None:
        """Add elements, from number `first` on, of the scaled product."""
        left, right = self._matrices()
        columns = right.shape[1]
        while len(values):
            row, column = divmod(first, columns)
            count = min(len(values), columns - column)
            if not column and len(values) >= columns:
                rows = max(1, min(len(values), BLOCK) // columns)
                count = rows * columns
                _add(values[:count].reshape(rows, columns), left[row : row + rows], right, self.scale)
            else:
                _add(values[None, :count], left[row : row + 1], right[:, column : column + count], self.scale)
            values, first = values[count:], first + count

    def _matrices(self) -> tuple[Matrix, Matrix]:
        """Return the factors: (m, rank) and (rank, n), whose product has the weight's elements in their order."""
        made = RECENT.get(self)
        if made is None:
            both = np.concatenate([read_numbers(span, 0, span.elements) for span in self._factors])
            made = memoryview(both.view(np.uint8).data)
            RECENT.put(self, made)
        numbers, split = np.frombuffer(made, np.float64), self._factors[0].elements
        rank = self._factors[0].shape[1]
        left, right = numbers[:split].reshape(-1, rank), numbers[split:].reshape(rank, -1)
        return (right.T, left.T) if self.transposed else (left, right)


def _add(values: Matrix, left: Matrix, right: Matrix, scale: float) -> None:
    """Add scale * left @ right to values: (m, n), (m, rank), (rank, n)."""
    total = np.zeros_like(values)
    product = np.empty_like(values)
    for k in range(right.shape[0]):
        np.multiply(left[:, k, None], right[k], out=product)
        total += product
    total *= scale
    values += total
