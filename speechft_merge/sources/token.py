"""Decides who may see the user's token: the Hub itself, and no other host."""

from __future__ import annotations

from urllib.parse import urlsplit


def authorization(url: str) -> dict[str, str]:
    """Return the headers that carry the token, if `url` is the Hub's; a signed URL on another host must not see it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers() if _host(url) == _host(constants.ENDPOINT) else {}
    return headers


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
