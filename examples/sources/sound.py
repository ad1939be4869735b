"""Speech made harder to hear: pink noise, the band of a telephone, its coding; and crops that are not silent."""

from __future__ import annotations

import math

import numpy as np
import torch

from examples.sources.recordings import RATE, Samples, random_crops

BAND = 300.0, 3400.0
"""Hertz that a telephone lets through."""
RMS = 0.1
MU = 255
"""Of the mu-law (ITU-T G.711)."""


def loud_crops(recording: Samples, count: int, length: int, generator: np.random.Generator) -> torch.Tensor:
    """The louder half of twice as many random crops: prompts have pauses."""
    crops = random_crops(recording, 2 * count, length, generator)
    return crops[crops.square().mean(dim=1).topk(count).indices]


def levelled(waves: torch.Tensor) -> torch.Tensor:
    """Each row at one loudness."""
    return waves / (waves.square().mean(dim=1, keepdim=True).sqrt() + 1e-6)


def noisy(waves: torch.Tensor, snr: tuple[float, float], generator: np.random.Generator) -> torch.Tensor:
    """Waves, (rows, samples), with pink noise; decibels uniform between the two of `snr`; speech at a level of 1."""
    frequencies = torch.fft.rfftfreq(waves.shape[1], 1 / RATE)
    white = torch.from_numpy(generator.standard_normal(waves.shape)).float()
    pink = torch.fft.irfft(torch.fft.rfft(white) / frequencies.clamp(min=frequencies[1]).sqrt(), n=waves.shape[1])
    decibels = torch.from_numpy(generator.uniform(*snr, size=(len(waves), 1))).float()
    return levelled(waves) + levelled(pink) * 10 ** (-decibels / 20)


def telephone(waves: torch.Tensor) -> torch.Tensor:
    """Waves held to a telephone's band, each row at one loudness."""
    frequencies = torch.fft.rfftfreq(waves.shape[1], 1 / RATE)
    heard = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    return RMS * levelled(torch.fft.irfft(torch.fft.rfft(waves) * heard, n=waves.shape[1]))


def coded(waves: torch.Tensor) -> torch.Tensor:
    """Waves between -1 and 1 in the 8 bits of the mu-law, and back."""
    squeezed = waves.clamp(-1, 1).sign() * torch.log1p(MU * waves.abs().clamp(max=1)) / math.log1p(MU)
    steps = (squeezed * 127).round() / 127
    return steps.sign() * torch.expm1(steps.abs() * math.log1p(MU)) / MU
