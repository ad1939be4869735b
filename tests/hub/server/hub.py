"""The state of the server: accounts, repositories, who may do what, and signatures of URLs."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from .blobs import LFS_SUFFIXES, Blobs
from .errors import HubError
from .repository import MAIN, Repository
from .xet import Cas

ANONYMOUS = "Invalid username or password."


@dataclass(frozen=True)
class User:
    """The bearer of a token; `role` is the token's: read or write."""

    name: str
    role: str


class Hub:
    """`endpoint` and `cdn` are two origins of one server."""

    def __init__(self, endpoint: str, cdn: str, blobs: Path, accounts: dict[str, User], ttl: int) -> None:
        self.endpoint = endpoint
        self.blobs = Blobs(blobs)
        self.cas: Cas | None = None
        self.repositories: dict[str, Repository] = {}
        self.epoch = 0  # signatures of earlier ones do not hold
        self._cdn = cdn
        self._accounts = accounts
        self._ttl = ttl

    def create(self, repo_id: str, private: bool, gated: bool = False) -> Repository:
        """An empty repository, in place of any that was there."""
        repository = self.repositories[repo_id] = Repository(repo_id, private, gated)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.commit(MAIN, {".gitattributes": self.blobs.add(attributes.encode())}, "initial commit", None)
        return repository

    def caller(self, request: Request) -> User | None:
        """Who asks; None without a token."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        user = self._accounts.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def known_caller(self, request: Request) -> User:
        user = self.caller(request)
        if user is None:
            raise HubError(401, ANONYMOUS)
        return user

    def readable(self, request: Request, repo_id: str) -> Repository:
        """The repository, if the caller may know of it; whether it is gated is another question."""
        user, repository = self.caller(request), self.repositories.get(repo_id)
        if repository is not None and (not repository.private or _owns(user, repository)):
            return repository
        # A bare 401 means a missing repository to the client under https only; with the code also under http.
        if user is None:
            raise HubError(401, ANONYMOUS, "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def downloadable(self, request: Request, repo_id: str) -> Repository:
        """The repository, if the caller may have its files."""
        repository, user = self.readable(request, repo_id), self.caller(request)
        if repository.gated and not _owns(user, repository):
            where = f"Visit {self.endpoint}/{repo_id} to ask for access."
            message = f"Access to model {repo_id} is restricted and you are not in the authorized list. {where}"
            raise HubError(401 if user is None else 403, message, "GatedRepo")
        return repository

    def writable(self, request: Request, repo_id: str, by_pull_request: bool = False) -> Repository:
        """The repository, if the caller may change it or, with `by_pull_request`, propose to."""
        repository, user = self.readable(request, repo_id), self.caller(request)
        if user is None:
            raise HubError(401, ANONYMOUS, "RepoNotFound")
        if user.role != "write":
            raise HubError(403, f"Forbidden: the token of {user.name} has the role {user.role}, not write")
        if not by_pull_request and not _owns(user, repository):
            raise HubError(403, f"Forbidden: {user.name} has no right to write to {repo_id}")
        return repository

    def sign(self, path: str) -> str:
        """A URL on the CDN that holds for a while."""
        expires = str(int(time.time()) + self._ttl)
        return f"{self._cdn}{path}?Expires={expires}&Signature={self._signature(path, expires)}"

    def signed(self, request: Request, path: str) -> bool:
        """Whether the request's URL for `path` holds still."""
        expires = request.query_params.get("Expires", "0")
        right = hmac.compare_digest(request.query_params.get("Signature", ""), self._signature(path, expires))
        return right and time.time() < int(expires)

    def _signature(self, path: str, expires: str) -> str:
        return hashlib.sha256(f"{path} {expires} {self.epoch}".encode()).hexdigest()


def _owns(user: User | None, repository: Repository) -> bool:
    return user is not None and user.name == repository.owner
