"""Probes, fitted anew on frozen features: ridge regression, and a learned weighted sum of layers as SUPERB has it."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, one_hot

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Of the ridge, times the rows of a fit, on features of unit variance."""
SEEDS = 3
"""Weighted sums, each from another start."""
STEPS = 300
ROWS = 1024
RATE = 1e-2
EVERY = 50
"""Steps between looks at the held-out rows."""


def standardised(fit: torch.Tensor, test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with the mean 0 and the variance 1 that they have over the rows of the fit."""
    mean, scale = fit.mean(dim=0), fit.std(dim=0) + 1e-6
    return (fit - mean) / scale, (test - mean) / scale


def solved(products: torch.Tensor, targets: torch.Tensor, strength: float, rows: int) -> torch.Tensor:
    """Ridge regression from products of features, (n, n): the weights that give the targets, (n, classes)."""
    ridge = products + strength * rows * torch.eye(len(products))
    return torch.cholesky_solve(targets, torch.linalg.cholesky(ridge))


def ridge(fit: torch.Tensor, labels: torch.Tensor, held_out: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Classes of the test rows, (rows,), by ridge regression onto one-hot classes.

    The strength is the one that does best on the rows held out of a first fit; then all rows are fitted.
    Features (rows, width); labels and held_out, (rows,).
    """
    fit, test = standardised(fit, test)
    classes = one_hot(labels).float()
    mean = classes.mean(dim=0)
    parts = [(fit[rows], classes[rows] - mean) for rows in (~held_out, held_out)]
    (gram, right), (more_gram, more_right) = ((x.T @ x, x.T @ y) for x, y in parts)

    def hits(strength: float) -> int:
        scores = fit[held_out] @ solved(gram, right, strength, len(parts[0][0])) + mean
        return int(scores.argmax(dim=1).eq(labels[held_out]).sum())

    best = max(STRENGTHS, key=hits)
    weights = solved(gram + more_gram, right + more_right, best, len(fit))
    return (test @ weights + mean).argmax(dim=1)


def weighted_sum(fit: torch.Tensor, labels: torch.Tensor, held_out: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Classes of the test rows by so many probes, (SEEDS, rows): a softmax-weighted sum of the layers, then linear.

    Each is taken at the step that does best on the rows held out. Features (rows, layers, width).
    """
    fit, test = (each.transpose(0, 1).contiguous() for each in standardised(fit, test))
    train, checked = fit[:, ~held_out], fit[:, held_out]
    trained_on, checked_on = labels[~held_out], labels[held_out]
    generator = torch.Generator().manual_seed(0)
    layers, _, width = fit.shape
    classes = int(labels.max()) + 1
    shares = torch.zeros(SEEDS, layers, requires_grad=True)
    linear = (torch.rand(SEEDS, width, classes, generator=generator) * 2 - 1) / width**0.5
    linear.requires_grad_(True)
    bias = torch.zeros(SEEDS, 1, classes, requires_grad=True)
    parameters = [shares, linear, bias]
    optimiser = torch.optim.AdamW(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    most, best = torch.full((SEEDS,), -1), [parameter.detach().clone() for parameter in parameters]

    def scores(features: torch.Tensor) -> torch.Tensor:
        mixed = shares.softmax(dim=1) @ features.flatten(1)
        return torch.baddbmm(bias, mixed.view(SEEDS, -1, width), linear)

    for step in range(1, STEPS + 1):
        rows = torch.randint(len(trained_on), (ROWS,), generator=generator)
        loss = cross_entropy(scores(train.index_select(1, rows)).flatten(0, 1), trained_on[rows].repeat(SEEDS)) * SEEDS
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % EVERY == 0:
            with torch.no_grad():
                hits = scores(checked).argmax(dim=2).eq(checked_on).sum(dim=1)
                better = hits > most
                most = torch.where(better, hits, most)
                for kept, parameter in zip(best, parameters, strict=True):
                    kept[better] = parameter[better]
    with torch.no_grad():
        for kept, parameter in zip(best, parameters, strict=True):
            parameter.copy_(kept)
        return scores(test).argmax(dim=2)
