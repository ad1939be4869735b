"""Parses what a user calls a model: a path, or a repository on the Hub with a revision and a file in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from speechft_merge.arguments import listed, text_path
from speechft_merge.errors import NotFoundError, SpeechFTMergeError
from speechft_merge.sources.base import HubOrigin
from speechft_merge.sources.nearby import nearest

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".th", ".nemo")
"""Suffixes of weights files; what is in them, only their bytes tell."""
AMBIGUOUS_SUFFIXES = (".model",)
"""Suffixes of weights files, and as often of other files: sentencepiece's tokenizers."""

Reference = str | PathLike[str]
"""What the library's functions take for a model."""

_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_SPECIAL = r"refs/(?:pr/\d+|convert/[\w.-]+|heads/[\w.-]+)"
# a revision may hold slashes (refs/pr/2); in a URL as huggingface_hub writes it, they are %2F
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


def weight_suffix(name: str) -> str:
    """Return the suffix of a weights file; empty if a name has none of these."""
    return next((suffix for suffix in WEIGHT_SUFFIXES + AMBIGUOUS_SUFFIXES if name.endswith(suffix)), "")


def list_references(base: Reference, finetuned: Reference | Sequence[Reference]) -> list[str]:
    """Return the references of a base and of one fine-tune or several as text.

    Raises:
        UsageError: one is neither text nor a path.
    """
    return [text_path(base, "base"), *(text_path(one, "finetuned") for one in listed(finetuned))]


def parse_reference(text: str) -> Path | HubReference:
    """Return a path if it exists or is written like one, else a reference to a repository, whatever encoder it picks.

    Raises:
        NotFoundError: no such path, and not a valid reference to a repository.
    """
    if not text.startswith("hf://"):
        path = local_path(text)
        if path is not None:
            return path
        if _looks_local(_whole(text)):
            raise _no_path(text)
    whole = _whole(text)
    found = _checked((_URL if whole.startswith("hf://") else _SHORT).fullmatch(whole.removeprefix("hf://")))
    if found is None:
        raise _no_path(text)
    return found


def without_path(error: SpeechFTMergeError, text: str) -> SpeechFTMergeError:
    """Return an error of the Hub's about a reference that may be a mistyped path, with the nearest of these.

    With a revision or a file it hardly is one, unless a path is near; where the Hub's files are listed, it is none.
    """
    if text.startswith("hf://") or error.found:
        return error
    plain = re.split("[@:]", text, maxsplit=1)[0]
    near = nearest(_whole(text)) or nearest(plain)
    if near is None and text != plain and not _is_folder(text.partition("/")[0]):
        return error
    return type(error)(f"{error.message}; {_whole(plain)} is no local path either", found=near, hint=error.hint)


def _looks_local(text: str) -> bool:
    """Return whether a text can only be meant as a path, or should be: its first folder exists."""
    if text.startswith(("/", "./", "../", "~")) or (text.endswith(WEIGHT_SUFFIXES) and ":" not in text):
        return True
    first, slash, rest = text.partition("/")
    return bool(slash) and not set("@:") & set(text) and ("/" in rest or _is_folder(first))


def _is_folder(text: str) -> bool:
    path = _existing(text)
    return path is not None and path.is_dir()


def _no_path(text: str) -> NotFoundError:
    """Return the error for a reference that is neither a path that exists nor a repository's."""
    if (broken := _broken(_whole(text))) is not None:
        return broken
    hint = "hf://org/name" if "/" in text else "org/name or org/name@revision:file"
    plainly = text.startswith(("/", "./", "../", "~"))
    return NotFoundError(
        f"{text[:200]}: no local path of that name",
        found=nearest(_whole(text)),
        hint=None if plainly else f"write a model on the Hub as {hint}",
    )


def _broken(text: str) -> NotFoundError | None:
    """Return the error for a path that leads nowhere, or may not be looked at; None for one that is not there."""
    try:
        path = Path(text).expanduser()
        path.lstat()
        target = str(path.readlink())
    except PermissionError as error:
        return NotFoundError(f"cannot read {text[:200]}: {error.strerror}")
    except (OSError, RuntimeError, ValueError):  # not there; a name too long, a user unknown, a NUL in it
        return None
    return NotFoundError(f"{text[:200]} is a link to {target[:200]}, which leads nowhere")


def encoder_of(text: str) -> str:
    """Return what picks one encoder of several: `student` of `last.ckpt#student`; empty in most references."""
    path, mark, picked = text.rpartition("#")
    return picked if mark and path and _existing(text) is None else ""


def at_commit(text: str, hub: HubOrigin | None) -> str:
    """Return a reference to the Hub with the commit that was read: a branch may move. Others stay as they are."""
    found = parse_reference(text) if hub is not None else None
    if hub is None or not isinstance(found, HubReference):
        return text
    picked = encoder_of(text)
    return str(replace(found, revision=hub.commit)) + (f"#{picked}" if picked else "")


def local_path(text: str) -> Path | None:
    """Return the path if it exists, of one that picks an encoder the path before that."""
    return _existing(_whole(text))


def _whole(text: str) -> str:
    picked = encoder_of(text)
    return text[: -len(picked) - 1] if picked else text


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a user unknown, a NUL in it
        return None


def _checked(found: re.Match[str] | None) -> HubReference | None:
    """Return the parts of a reference if they are valid: no name with -- or .., no path that leads outside."""
    if found is None:
        return None
    repo, revision, path = found.groups()
    path = (path or "").rstrip("/")
    if "--" in repo or ".." in repo or path.startswith("/") or ".." in path.split("/"):
        return None
    return HubReference(repo, revision.replace("%2F", "/") if revision else None, path or None)
