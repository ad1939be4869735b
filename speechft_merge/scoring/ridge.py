"""Fits ridge regression in its dual form, and predicts what was held out: arithmetic on numpy. Pure.

With centred features and targets the intercept is not penalised. Of a symmetric eigendecomposition K = U S U' of the
kernel, the fit is H Y with H = U S (S + lambda)^-1 U' + 11'/n, and the residual of a row that is left out is
(y_i - (HY)_i) / (1 - H_ii): Allen 1974 (PRESS, Technometrics 16); for kernels Rifkin & Lippert 2007 (Notes on
Regularized Least Squares, MIT-CSAIL-TR-2007-025, section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

STRENGTHS = tuple(10.0**power for power in range(2, -5, -1))
"""Lambda over the mean eigenvalue of the kernel; of equally good ones the first is taken."""
_CONSTANT = 1e-12
"""Variance over mean square below which a layer says nothing: float32 rounds to 1e-7."""


def held_out(layers: Sequence[Array], targets: Array, folds: Sequence[int]) -> Array:
    """Return what ridge regression predicts of each clip when it is fitted to the other folds: (clips, targets).

    Each layer counts alike: it is divided by its total standard deviation over the clips that are fitted.

    Args:
        layers: features of the clips, (clips, width) each.
        targets: (clips, targets).
        folds: of each clip.
    """
    places = np.asarray(folds)
    tested = [places == fold for fold in sorted({*folds})]
    kernels = [np.zeros((len(places), len(places))) for _ in tested]
    for layer in layers:
        moved = layer - layer.mean(0)  # nearer to each fold's own mean: less is lost when that is subtracted
        gram = moved @ moved.T
        for test, kernel in zip(tested, kernels, strict=True):
            variance = _variance(gram, ~test)
            if variance > _CONSTANT * np.square(layer).sum(1).mean():
                kernel += gram / variance
    predicted = np.empty_like(targets)
    for test, kernel in zip(tested, kernels, strict=True):
        predicted[test] = fit_and_predict(kernel, targets, ~test)
    return predicted


def _variance(gram: Array, rows: NDArray[np.bool_]) -> float:
    """Return the mean square distance of rows from their mean, by the products of all rows."""
    return float(gram.diagonal()[rows].mean() - gram[np.ix_(rows, rows)].mean())


def fit_and_predict(kernel: Array, targets: Array, fitted: NDArray[np.bool_]) -> Array:
    """Return the predictions of the rows that are not fitted, with the strength that leaving one row out favours.

    Args:
        kernel: products of the features of all rows, (rows, rows), in any place.
        targets: (rows, targets).
        fitted: which rows are fitted.
    """
    across = kernel[:, fitted].mean(1)
    centred = kernel - across[:, None] - kernel[fitted].mean(0) + across[fitted].mean()
    mean = targets[fitted].mean(0)
    values, vectors = np.linalg.eigh(centred[np.ix_(fitted, fitted)])
    values = values.clip(0)
    turned = vectors.T @ (targets[fitted] - mean)
    scale = float(values.mean()) or 1.0
    best = min(STRENGTHS, key=lambda strength: left_out_error(values, vectors, turned, strength * scale))
    weights = vectors @ (turned / (values + best * scale)[:, None])
    predicted: Array = centred[np.ix_(~fitted, fitted)] @ weights + mean
    return predicted


def left_out_error(values: Array, vectors: Array, turned: Array, penalty: float) -> float:
    """Return the sum of squared residuals of rows, each predicted from all others.

    Args:
        values: eigenvalues of the centred kernel, (rows,).
        vectors: its eigenvectors, (rows, rows).
        turned: the centred targets in their basis, (rows, targets).
        penalty: lambda.
    """
    kept = values / (values + penalty)
    residuals = vectors @ ((1 - kept)[:, None] * turned)
    leverage = np.square(vectors) @ kept + 1 / len(values)
    return float(np.square(residuals / (1 - leverage)[:, None]).sum())
