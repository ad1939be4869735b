"""What a user may call a model: a path, or a repository on the Hub with a revision and a file in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from speechft_merge.errors import NotFoundError

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""What weights files are called; what is in them, only their bytes tell."""

_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_SPECIAL = r"refs/(?:pr/\d+|convert/[\w.-]+|heads/[\w.-]+)"
_SHORT = re.compile(rf"({_REPO})(?:@([^:]+))?(?::(.+))?")
_URL = re.compile(rf"({_REPO})(?:@({_SPECIAL}|[^/:]+))?(?:[/:](.*))?")


@dataclass(frozen=True, slots=True)
class HubReference:
    """`org/name[@revision][:path/in/repo]`."""

    repo: str
    revision: str | None = None
    path: str | None = None
    """A file, or a folder; None for the repository's top."""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.path}" if self.path else "")


def parse_reference(text: str) -> Path | HubReference:
    """A path if there is one by that name, or if it is written like one; else a repository.

    Raises:
        NotFoundError: no such path, and no name that a repository can have.
    """
    if not text.startswith("hf://"):
        path = local_path(text)
        if path is not None:
            return path
        if text.startswith(("/", "./", "../", "~")):
            raise NotFoundError(f"{text[:200]}: no such file or directory")
    found = _parse_url(text.removeprefix("hf://")) if text.startswith("hf://") else _parse_short(text)
    if found is None:
        raise NotFoundError(
            f"{text[:200]}: no such file or directory, and not a Hub reference",
            hint="a model on the Hub is org/name or org/name@revision:file",
        )
    return found


def local_path(text: str) -> Path | None:
    """The path, if there is anything at it."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a user unknown, a NUL in it
        return None


def _parse_short(text: str) -> HubReference | None:
    """`org/name@revision:path`; a revision may hold slashes (`refs/pr/2`)."""
    return _checked(_SHORT.fullmatch(text))


def _parse_url(text: str) -> HubReference | None:
    """`org/name@revision/path`, as huggingface_hub's file system has it after hf://; a revision's slashes are %2F."""
    return _checked(_URL.fullmatch(text))


def _checked(found: re.Match[str] | None) -> HubReference | None:
    """The parts of a reference, if they can be meant: no name with -- or .., no path that leads out."""
    if found is None:
        return None
    repo, revision, path = found.groups()
    path = (path or "").rstrip("/")
    if "--" in repo or ".." in repo or path.startswith("/") or ".." in path.split("/"):
        return None
    return HubReference(repo, revision.replace("%2F", "/") if revision else None, path or None)
