"""CKA by the definitions, in float64, with the whole Gram matrices: slow, and nothing shared with what is tested."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Array = "NDArray[Any]"


def hsic_biased(x: NDArray[Any], y: NDArray[Any]) -> float:
    """tr(KHLH) / (n - 1)^2."""
    n = len(x)
    centring = np.eye(n) - 1 / n
    return float(np.trace(x @ x.T @ centring @ y @ y.T @ centring)) / (n - 1) ** 2


def hsic_song(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Song et al. 2012, equation 5."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    inner = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return float(inner) / (n * (n - 3))


def hsic_of_groups(xs: Sequence[NDArray[Any]], ys: Sequence[NDArray[Any]]) -> float:
    """Mean over all ordered four different groups, each frame weighing one over its group's frames."""
    k = [[a @ b.T for b in xs] for a in xs]
    l = [[a @ b.T for b in ys] for a in ys]  # noqa: E741
    found = [
        (k[u][v] * l[u][v]).mean() - 2 * (k[u][v].mean(1) * l[u][w].mean(1)).mean() + k[u][v].mean() * l[w][z].mean()
        for u, v, w, z in itertools.permutations(range(len(xs)), 4)
    ]
    return math.fsum(found) / len(found)


def ratio(hsic: Callable[[Any, Any], float], x: Any, y: Any) -> float:
    """CKA by one of the above."""
    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def cka_biased(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The same as `ratio` of `hsic_biased`, without Gram matrices: for many frames."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross, own, other = (float(np.square(a.T @ b).sum()) for a, b in ((x, y), (x, x), (y, y)))
    return cross / math.sqrt(own * other)
