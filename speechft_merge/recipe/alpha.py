"""Parses alphas from text and checks their range."""

from __future__ import annotations

import math

from speechft_merge.choices import METHODS
from speechft_merge.errors import UsageError

DEFAULT_ALPHAS = dict.fromkeys(METHODS, 1.0) | {"mean": 0.25}
"""Method -> alpha. A mean has Speech-FT's own (Lin et al. 2026), three quarters pre-trained; the others say by their
coefficients, or estimate, how much goes in."""


def parse_alpha(text: str) -> float:
    """Parse an alpha, a finite number.

    Raises:
        UsageError: it is not one.
    """
    return parse_number(text, "an alpha", "0.25")


def parse_number(text: str, what: str, example: str) -> float:
    """Parse a finite number, also in percent (`25%`); `what` it is and an `example` go into the message.

    Raises:
        UsageError: it is not a number, or not finite.
    """
    try:
        value = float(f"{text[:-1]}e-2" if text.endswith("%") else text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number", hint=f"give {what} such as {example}") from None
    if not math.isfinite(value):
        raise UsageError(f"{what} must be finite, got {text}")
    return value


def check_alpha(alpha: float, extrapolate: bool) -> None:
    """Check that an alpha is from 0 to 1, unless `extrapolate` is set.

    Raises:
        UsageError: it is not.
    """
    if not 0 <= alpha <= 1 and not extrapolate:
        raise UsageError(
            f"alpha {alpha:g} lies outside 0 (the base) to 1 (the fine-tune)",
            hint="pass --extrapolate to allow it" + (f", or {alpha:g}% if that is meant" if 2 < alpha <= 100 else ""),
        )
