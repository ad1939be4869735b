"""Takes out of text what nobody but the user may read: tokens, passwords and signatures in URLs."""

from __future__ import annotations

import functools
import os
import re
import sys

_SECRETS = (
    (re.compile(r"(?<=://)[^\s/]*@"), ""),
    (re.compile(r"(?<![^\s'\"(<\[])([a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"?#]+)\?[^\s'\")>\]]+"), r"\1?..."),
    (re.compile(r"\b(Bearer|Basic)\s+[^\s'\",]+", re.IGNORECASE), r"\1 ..."),
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{8,}"), r"\1_..."),
)
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 8
"""Characters that a token has at least; a shorter word may be one of the text."""


def _stored() -> str:
    """Return the token that `hf auth login` stored, if a client that could send it is loaded."""
    return _read_stored() if "huggingface_hub.utils" in sys.modules else ""


@functools.cache
def _read_stored() -> str:
    try:
        from huggingface_hub import get_token

        return get_token() or ""
    except Exception:  # an environment in which the client cannot even be imported; the log must not fail
        return ""


def redacted(text: str) -> str:
    """Return text without the user's token, without other tokens of the Hub's, and URLs without password and query.

    A signed URL lets everyone who sees it write or read until it expires; a server may echo a token.
    """
    for token in (*(os.environ.get(variable, "").strip() for variable in _VARIABLES), _stored()):
        if len(token) >= _SHORTEST:
            text = text.replace(token, "...")
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return text
