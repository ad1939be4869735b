"""Adds a product of two small matrices to a weight while it is read: W + scale * B A.

The product is summed over the rank in ascending order in float64, in which a product of two float32 numbers is exact,
and never by BLAS, whose order differs between machines: a merge has the same bytes on all of them. The sum with W is
rounded once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from speechft_merge.checkpoints.computed import Derived
from speechft_merge.checkpoints.rounding import read_numbers
from speechft_merge.errors import MismatchError, quote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechft_merge.checkpoints.index import TensorSpan

    Matrix = NDArray[np.float64]

BLOCK = 1 << 15
"""Numbers that are summed at once: they stay in a core's cache while the rank is gone through."""
RECENT = 8
"""Adapted weights whose small matrices are kept."""


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
            MismatchError: the shapes do not fit.
        """
        super().__init__(name, parent, (left.source, right.source))
        self._factors, self.scale = (left, right), scale
        rows, rank = (*left.shape, 0)[:2]
        columns = right.elements // rank if rank else 0
        self._transposed = (columns, rows) == parent.shape and (transposed or rows != columns)
        same = (rows, columns) == parent.shape or (len(parent.shape) > 2 and rows % parent.shape[0] == 0)
        if (
            not (same or self._transposed)
            or (left.elements, right.elements, rows * columns) != (rows * rank, rank * columns, parent.elements)
            or right.shape[0] != rank
            or not all(span.dtype.interpolated for span in (parent, left, right))
        ):
            raise MismatchError(
                f"the LoRA on {quote(name)} does not fit: its matrices have the shapes {quote(list(left.shape))} and "
                f"{quote(list(right.shape))}, the weight {quote(list(parent.shape))}",
                hint="check that the base is the model that it was trained on",
            )

    def change(self, values: Matrix, first: int) -> None:
        """Add elements, from number `first` on, of the scaled product."""
        left, right = _matrices(self)
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

    def factors(self) -> tuple[Matrix, Matrix]:
        """Read the factors: (m, rank) and (rank, n), whose product has the weight's elements in their order."""
        left, right = (read_numbers(span, 0, span.elements) for span in self._factors)
        rank = self._factors[0].shape[1]
        left, right = left.reshape(-1, rank), right.reshape(rank, -1)
        return (right.T, left.T) if self._transposed else (left, right)


@lru_cache(maxsize=RECENT)
def _matrices(change: LowRank) -> tuple[Matrix, Matrix]:
    return change.factors()


def _add(values: Matrix, left: Matrix, right: Matrix, scale: float) -> None:
    """Add scale * left @ right to values: (m, n), (m, rank), (rank, n)."""
    total = np.zeros_like(values)
    product = np.empty_like(values)
    for k in range(right.shape[0]):
        np.multiply(left[:, k, None], right[k], out=product)
        total += product
    total *= scale
    values += total
