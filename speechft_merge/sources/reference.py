"""What a user may call a model: a path, or a repository on the Hub with a revision and a file in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from speechft_merge.errors import NotFoundError

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""What weights files are called; what is in them, only their bytes tell."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SPECIAL = re.compile(r"(refs/(?:pr/\d+|convert/[\w.-]+|heads/[\w.-]+))(?:/(.*))?")


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
            f"{text[:200]}: no such file or directory, and not a Hub reference (org/name, org/name@revision:file)"
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
    front, colon, path = text.partition(":")
    repo, at, revision = front.partition("@")
    if not _REPO.fullmatch(repo) or (at and not revision) or (colon and not _is_inner(path)):
        return None
    return HubReference(repo, revision or None, path or None)


def _parse_url(text: str) -> HubReference | None:
    """`hf://org/name@revision/path`, as huggingface_hub's file system writes it; slashes of a revision are %2F."""
    repo = _REPO.match(text)
    if repo is None:
        return None
    rest = text[repo.end() :]
    if ":" in rest:
        return _parse_short(text)
    revision = ""
    if rest.startswith("@"):
        special = _SPECIAL.fullmatch(rest[1:])
        revision, _, rest = rest[1:].partition("/") if special is None else (special[1], "", special[2] or "")
    path = rest.strip("/")
    if (path and not _is_inner(path)) or (not revision and rest and not rest.startswith("/") and "@" in text):
        return None
    return HubReference(repo[0], revision.replace("%2F", "/") or None, path or None)


def _is_inner(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/")
