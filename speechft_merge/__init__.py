"""Interpolate a pre-trained and a fine-tuned speech encoder, tensor by tensor (Speech-FT, Lin et al., TASLP 2026)."""

__version__ = "0.1.0"
