"""A model repository: commits, the references to them, and what the files of one look like from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .blobs import File
from .errors import HubError

Tree = dict[str, File]

BRANCHES, TAGS, PULL_REQUESTS = "refs/heads/", "refs/tags/", "refs/pr/"
MAIN = f"{BRANCHES}main"
SHORTEST_SHA = 7


@dataclass(frozen=True)
class Commit:
    sha: str
    tree: Tree
    title: str
    parent: str | None
    date: str


@dataclass
class Repository:
    """`refs` are full names, as git has them, of commits."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def commit(self, ref: str, tree: Tree, title: str, parent: str | None) -> str:
        """Add a commit and move `ref` to it."""
        seed = f"{self.id} {ref} {title} {parent} {len(self.commits)} {sorted(tree.items())}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = Commit(sha, tree, title, parent, _now())
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> Commit:
        """The commit of a branch, tag, full reference or (shortened) SHA."""
        for ref in (BRANCHES + revision, TAGS + revision, revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        found = [sha for sha in self.commits if sha.startswith(revision)] if len(revision) >= SHORTEST_SHA else []
        if len(found) != 1:
            raise no_revision(revision)
        return self.commits[found[0]]

    def movable(self, revision: str) -> str:
        """The full name of a reference that a commit can be put on."""
        for ref in (BRANCHES + revision, revision):
            if ref in self.refs and not ref.startswith(TAGS):
                return ref
        raise no_revision(revision)

    def next_pull_request(self) -> int:
        return 1 + sum(ref.startswith(PULL_REQUESTS) for ref in self.refs)

    def point(self, ref: str, sha: str) -> None:
        """Add a reference."""
        if ref in self.refs:
            raise HubError(409, f"Reference {ref} already exists")
        self.refs[ref] = sha

    def unpoint(self, ref: str) -> None:
        """Delete a reference."""
        if self.refs.pop(ref, None) is None:
            raise no_revision(ref)

    def history(self, revision: str) -> Iterator[Commit]:
        """Newest first."""
        commit: Commit | None = self.find(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None


def listing(tree: Tree, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders below `folder`, each folder before what is in it."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in tree if path.startswith(prefix)):
        steps = path.removeprefix(prefix).split("/")
        for depth in range(1, len(steps)):
            if recursive or depth == 1:
                parent = prefix + "/".join(steps[:depth])
                entries.setdefault(parent, _folder_entry(parent))
        if recursive or len(steps) == 1:
            entries[path] = _file_entry(path, tree[path])
    return list(entries.values())


def entry(tree: Tree, path: str) -> dict[str, Any] | None:
    """One file or folder."""
    if path in tree:
        return _file_entry(path, tree[path])
    return _folder_entry(path) if any(name.startswith(f"{path}/") for name in tree) else None


def no_revision(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _file_entry(path: str, file: File) -> dict[str, Any]:
    xet = {"xetHash": file.xet_hash} if file.xet_hash else {}
    return {"type": "file", "path": path, "size": file.size, "oid": file.oid} | file.lfs_entry("oid") | xet


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
