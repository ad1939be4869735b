"""Changes: what to upload how, commits, branches and tags."""

from __future__ import annotations

import base64
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import card
from .blobs import File, goes_to_lfs
from .errors import HubError
from .hub import Hub
from .repository import BRANCHES, PULL_REQUESTS, TAGS, Repository, Tree
from .routing import Routes

routes = Routes()


@routes.add("POST", "/api/models/{repo}/preupload/{rev}")
async def preupload(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    """Tells of each file how to send it, and what is there under its name, so that it need not be sent at all."""
    tree = hub.writable(request, repo, _by_pull_request(request)).find(rev).tree
    answer = []
    for file in (await request.json())["files"]:
        lfs = goes_to_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        there = tree.get(file["path"])
        answer.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
                "oid": there.etag if there else None,
            }
        )
    return JSONResponse({"files": answer})


@routes.add("POST", "/api/models/{repo}/commit/{rev}")
async def commit(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    by_pull_request = _by_pull_request(request)
    repository = hub.writable(request, repo, by_pull_request)
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header, *operations = (line["value"] | {"key": line["key"]} for line in lines)
    parent = _parent(repository, rev, header.get("parentCommit"), by_pull_request)
    tree = dict(repository.commits[parent].tree)
    for operation in operations:
        _apply(hub, tree, operation)
    number = repository.next_pull_request()
    ref = f"{PULL_REQUESTS}{number}" if by_pull_request else repository.movable(rev)
    sha = repository.commit(ref, tree, header["summary"], parent)
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{repo}/commit/{sha}"}
    if by_pull_request:
        answer["pullRequestUrl"] = f"{hub.endpoint}/{repo}/discussions/{number}"
    return JSONResponse(answer)


@routes.add("POST", "/api/models/{repo}/branch/{branch}")
async def create_branch(hub: Hub, request: Request, repo: str, branch: str) -> Response:
    repository = hub.writable(request, repo)
    asked = json.loads(await request.body() or b"{}")
    repository.point(BRANCHES + branch, repository.find(asked.get("startingPoint", "main")).sha)
    return JSONResponse({})


@routes.add("DELETE", "/api/models/{repo}/branch/{branch}")
async def delete_branch(hub: Hub, request: Request, repo: str, branch: str) -> Response:
    hub.writable(request, repo).unpoint(BRANCHES + branch)
    return JSONResponse({})


@routes.add("POST", "/api/models/{repo}/tag/{rev}")
async def create_tag(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    repository = hub.writable(request, repo)
    repository.point(TAGS + (await request.json())["tag"], repository.find(rev).sha)
    return JSONResponse({})


@routes.add("DELETE", "/api/models/{repo}/tag/{tag}")
async def delete_tag(hub: Hub, request: Request, repo: str, tag: str) -> Response:
    hub.writable(request, repo).unpoint(TAGS + tag)
    return JSONResponse({})


def _parent(repository: Repository, rev: str, expected: str | None, by_pull_request: bool) -> str:
    """The commit to build on: the tip of `rev`, or what the client wants a pull request to start from."""
    repository.movable(rev)
    tip = repository.find(rev).sha
    if expected is None:
        return tip
    if by_pull_request:
        return repository.find(expected).sha
    if not tip.startswith(expected):
        raise HubError(412, f"A commit has happened since. Please refresh and try again. ({expected} is not {tip})")
    return tip


def _apply(hub: Hub, tree: Tree, operation: dict[str, Any]) -> None:
    path = operation["path"]
    match operation["key"]:
        case "file":
            tree[path] = _regular(hub, path, base64.b64decode(operation["content"]))
        case "lfsFile":
            tree[path] = _large(hub, operation["oid"])
        case "deletedFile":
            if tree.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        case "deletedFolder":
            for name in [name for name in tree if name.startswith(f"{path.rstrip('/')}/")]:
                del tree[name]
        case key:
            raise HubError(400, f"Unknown operation: {key}")


def _regular(hub: Hub, path: str, content: bytes) -> File:
    if path == "README.md" and (wrong := card.errors(content.decode())):
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(wrong)}")
    return hub.blobs.add(content)


def _large(hub: Hub, sha256: str) -> File:
    xet_hash = hub.cas.take_in(sha256) if hub.cas else None
    if sha256 not in hub.blobs:
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
    return hub.blobs.lfs_file(sha256, xet_hash)


def _by_pull_request(request: Request) -> bool:
    return request.query_params.get("create_pr") == "1"
