"""Speech whose CKA is known: frames of clips of voices, each level with a variance of its own. Vectorised, in float64.

Nothing is shared with what is tested: HSIC is summed over the groups of all draws at once, and without a group by
leaving it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Draws(NamedTuple):
    """Two representations of the same speech, many times over."""

    x: Floats
    """(draws, groups, clips, frames, width)."""
    y: Floats
    clips: NDArray[np.int64]
    """How many clips of a group there are, (draws, groups); the others do not count."""


@dataclass(frozen=True)
class World:
    """Where speech comes from: y is x by `alike`, plus other speech of the same kind."""

    alike: float = 0.7
    voices: float = 0.3
    """Share of the variance that is between voices."""
    between_clips: float = 0.2
    """Between the clips of a voice; the rest is between frames, each like its neighbours."""
    spread: float = 1.0
    """Variance of dimension d is d^-spread, from 1."""
    unequal: float = 0.0
    """Standard deviation of the logarithm of a voice's number of clips, 3 on average."""
    long_tails: bool = False
    width: int = 8
    frames: int = 6

    @property
    def truth(self) -> float:
        """CKA of all voices: dimensions are independent, so only their variances count."""
        return self.alike**2

    def draw(self, draws: int, groups: int, seed: int) -> Draws:
        rng = np.random.default_rng(seed)
        clips = np.rint(3 * np.exp(self.unequal * rng.standard_normal((draws, groups)))).clip(1, 12).astype(int)
        x, other = (self._speech(rng, (draws, groups, int(clips.max()))) for _ in range(2))
        return Draws(x, self.alike * x + math.sqrt(1 - self.alike**2) * other, clips)

    def _speech(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
        def level(share: float, *of: int) -> Floats:
            drawn = rng.standard_t(5, (*of, self.width)) / math.sqrt(5 / 3) if self.long_tails else None
            return math.sqrt(share) * (rng.standard_normal((*of, self.width)) if drawn is None else drawn)

        frames = rng.standard_normal((*shape, self.frames, self.width))
        for t in range(1, self.frames):
            frames[..., t, :] = 0.8 * frames[..., t - 1, :] + 0.6 * frames[..., t, :]
        rest = math.sqrt(1 - self.voices - self.between_clips) * frames
        speech = level(self.voices, *shape[:2], 1, 1) + level(self.between_clips, *shape, 1) + rest
        return np.asarray(speech * np.arange(1, self.width + 1) ** (-self.spread / 2))


def by_voice(draws: Draws) -> list[list[tuple[Floats, Floats]]]:
    """Draw by draw and voice by voice, the frames of its clips one after the other: (frames, width), twice."""
    return [
        [
            (x[:count].reshape(-1, x.shape[-1]), y[:count].reshape(-1, y.shape[-1]))
            for x, y, count in zip(*of_draw, strict=True)
        ]
        for of_draw in zip(*draws, strict=True)
    ]


def estimates(draws: Draws, voices: bool = True) -> tuple[Floats, Floats]:
    """CKA of each draw, (draws,), and without each group, (draws, groups), by the U-statistic over groups.

    Args:
        draws: of as many clips to each voice, if clips are the groups.
        voices: whether voices are the groups, or clips.
    """
    weights = (np.arange(draws.x.shape[2]) < draws.clips[..., None]) / draws.clips[..., None]
    sums = []
    for one, other in ((draws.x, draws.y), (draws.x, draws.x), (draws.y, draws.y)):
        clips = one.swapaxes(3, 4) @ other / one.shape[3], one.mean(3), other.mean(3)
        if voices:
            sums.append(_Sums(*(np.einsum("dgc,dgc...->dg...", weights, each) for each in clips)))
        else:
            sums.append(_Sums(*(each.reshape(len(each), -1, *each.shape[3:]) for each in clips)))
    groups = np.arange(sums[0].count)
    without = [_cka([each.hsic(groups != group) for each in sums]) for group in groups]
    return _cka([each.hsic(groups >= 0) for each in sums]), np.stack(without, 1)


def _cka(hsics: list[Floats]) -> Floats:
    cross, x, y = hsics
    return np.asarray(cross / np.sqrt(x * y))


class _Sums:
    """Of all draws and groups u: C_u = X_u'Y_u / frames, the means s_u and t_u, and the products of any two groups'."""

    def __init__(self, c: Floats, s: Floats, t: Floats) -> None:
        self.c, self.s, self.t, self.count = c, s, t, c.shape[1]
        flat, off = c.reshape(*c.shape[:2], -1), 1 - np.eye(self.count)
        self.pairs = (flat @ flat.swapaxes(1, 2)) * off
        self.k, self.l = (s @ s.swapaxes(1, 2)) * off, (t @ t.swapaxes(1, 2)) * off
        self.same = ((s[:, None] @ c) * t[:, None]).sum(3) * off
        """s_u' C_v t_u, (draws, v, u)."""

    def hsic(self, keep: NDArray[np.bool_]) -> Floats:
        """Mean over four different ones of the groups that are kept: (draws,)."""
        pairs, k, l, same = (each[:, keep][:, :, keep] for each in (self.pairs, self.k, self.l, self.same))  # noqa: E741
        c, s, t = self.c[:, keep], self.s[:, keep], self.t[:, keep]
        others_s, others_t = s.sum(1, keepdims=True) - s, t.sum(1, keepdims=True) - t
        triples = ((others_s[..., None, :] @ c)[..., 0, :] * others_t).sum((1, 2)) - same.sum((1, 2))
        rows_k, rows_l = k.sum(2), l.sum(2)
        quadruples = rows_k.sum(1) * rows_l.sum(1) - 4 * (rows_k * rows_l).sum(1) + 2 * (k * l).sum((1, 2))
        falling = np.cumprod(keep.sum() - np.arange(4.0))
        return np.asarray(pairs.sum((1, 2)) / falling[1] - 2 * triples / falling[2] + quadruples / falling[3])
