"""What tests tell the server, under /_test/: repositories without an upload, faults, the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .errors import HubError
from .faults import Fault, Faults
from .hub import Hub
from .journal import Entry
from .repository import BRANCHES, MAIN, TAGS, Tree

PREFIX = "/_test/"


@dataclass
class Controls:
    """`latency` is what every answer waits first, in seconds."""

    hub: Hub
    faults: Faults = field(default_factory=Faults)
    journal: list[Entry] = field(default_factory=list)
    latency: float = 0

    async def answer(self, request: Request, path: str) -> Response:
        if request.method == "GET" and path == f"{PREFIX}log":
            return JSONResponse([asdict(entry) for entry in self.journal])
        orders: dict[str, Callable[..., Any]] = {
            "commit": self._commit,
            "delete": self._delete,
            "epoch": self._epoch,
            "fault": self._fault,
            "latency": self._latency,
            "release": self._release,
            "repo": self._repo,
            "reset": self._reset,
            "stored": self._stored,
        }
        order = orders.get(path.removeprefix(PREFIX))
        if order is None or request.method != "POST":
            raise HubError(404, f"No such control: {request.method} {path}")
        try:
            return JSONResponse(order(**await request.json()))
        except (TypeError, ValueError, KeyError) as error:
            raise HubError(400, f"{type(error).__name__}: {error}") from error

    def _repo(
        self,
        repo: str,
        files: Mapping[str, str],
        private: bool = False,
        gated: bool = False,
        branches: tuple[str, ...] = (),
        tags: tuple[str, ...] = (),
    ) -> str:
        """A repository in place of any of that name, with one commit after the initial one; `files` are paths."""
        repository = self.hub.create(repo, private, gated)
        sha = self._commit(repo, files, title="upload") if files else repository.refs[MAIN]
        repository.refs |= {f"{BRANCHES}{name}": sha for name in branches} | {f"{TAGS}{name}": sha for name in tags}
        return sha

    def _commit(self, repo: str, files: Mapping[str, str], title: str, revision: str = "main") -> str:
        """Add or replace files."""
        repository = self.hub.repositories[repo]
        added: Tree = {name: self.hub.blobs.adopt(name, Path(path)) for name, path in files.items()}
        tip = repository.find(revision)
        return repository.commit(repository.movable(revision), tip.tree | added, title, tip.sha)

    def _delete(self, repo: str) -> None:
        self.hub.repositories.pop(repo, None)

    def _stored(self, repo: str, revision: str = "main") -> dict[str, Any]:
        """What a revision holds; the paths are to be read only."""
        repository = self.hub.repositories[repo]
        commit = repository.find(revision)
        return {
            "sha": commit.sha,
            "files": {name: str(self.hub.blobs.path(file.sha256)) for name, file in commit.tree.items()},
            "titles": [ancestor.title for ancestor in repository.history(revision)],
            "refs": repository.refs,
            "private": repository.private,
        }

    def _fault(self, **fault: Any) -> None:
        self.faults.add(Fault(**fault))

    def _latency(self, seconds: float) -> None:
        self.latency = seconds

    def _release(self) -> None:
        self.faults.release()

    def _epoch(self) -> None:
        """Let every signed URL expire."""
        self.hub.epoch += 1

    def _reset(self) -> None:
        self.faults.clear()
        self.journal.clear()
        self.latency = 0
