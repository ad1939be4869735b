"""Accounts, repositories as a whole, and reading of what they hold."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import card, repository
from .errors import HubError
from .hub import Hub
from .repository import BRANCHES, PULL_REQUESTS, TAGS, Commit, Repository
from .routing import Routes

routes = Routes()


@routes.add("GET", "/api/whoami-v2")
async def whoami(hub: Hub, request: Request) -> Response:
    user = hub.known_caller(request)
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
    return JSONResponse({"type": "user", "name": user.name, "fullname": user.name, "orgs": [], "auth": auth})


@routes.add("POST", "/api/repos/create")
async def create(hub: Hub, request: Request) -> Response:
    user, asked = hub.known_caller(request), await request.json()
    repo_id = _named(asked, user.name)
    if asked.get("type", "model") != "model":
        raise HubError(400, "This Hub holds models only")
    if user.role != "write" or not repo_id.startswith(f"{user.name}/"):
        namespace = repo_id.partition("/")[0]
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repositories:
        raise HubError(409, "You already created this model repo", body={"url": url})
    hub.create(repo_id, _private(asked, False))
    return JSONResponse({"url": url, "name": repo_id})


@routes.add("DELETE", "/api/repos/delete")
async def delete(hub: Hub, request: Request) -> Response:
    asked = await request.json()
    repo_id = _named(asked, hub.known_caller(request).name)
    del hub.repositories[hub.writable(request, repo_id).id]
    return Response("OK")


@routes.add("PUT", "/api/models/{repo}/settings")
async def settings(hub: Hub, request: Request, repo: str) -> Response:
    found, asked = hub.writable(request, repo), await request.json()
    found.gated = bool(asked.get("gated", found.gated))
    found.private = _private(asked, found.private)
    return JSONResponse({"private": found.private, "gated": found.gated})


@routes.add("POST", "/api/validate-yaml")
async def validate_card(hub: Hub, request: Request) -> Response:
    readme = (await request.json())["content"]
    errors = [{"message": message} for message in card.errors(readme)]
    missing = [] if card.front_matter(readme) else [{"message": "empty or missing yaml metadata in repo card"}]
    return JSONResponse({"errors": errors, "warnings": missing}, 400 if errors else 200)


@routes.add("GET", "/api/models/{repo}")
async def model(hub: Hub, request: Request, repo: str) -> Response:
    return await revision(hub, request, repo, "main")


@routes.add("GET", "/api/models/{repo}/revision/{rev}")
async def revision(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    found = hub.readable(request, repo)
    return JSONResponse(_info(hub, found, found.find(rev), _flag(request, "blobs")))


@routes.add("GET", "/api/models/{repo}/tree/{rev}")
async def whole_tree(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    tree = hub.readable(request, repo).find(rev).tree
    return JSONResponse(repository.listing(tree, "", _flag(request, "recursive")))


@routes.add("GET", "/api/models/{repo}/tree/{rev}/{path}")
async def part_of_tree(hub: Hub, request: Request, repo: str, rev: str, path: str) -> Response:
    tree = hub.readable(request, repo).find(rev).tree
    entries = repository.listing(tree, path.rstrip("/"), _flag(request, "recursive"))
    if not entries:
        raise HubError(404, f'{path} does not exist on "{rev}"', "EntryNotFound")
    return JSONResponse(entries)


@routes.add("POST", "/api/models/{repo}/paths-info/{rev}")
async def paths(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    tree = hub.readable(request, repo).find(rev).tree
    asked = parse_qs((await request.body()).decode()).get("paths", [])
    entries = [repository.entry(tree, path.strip("/")) for path in asked]
    return JSONResponse([entry for entry in entries if entry])


@routes.add("GET", "/api/models/{repo}/refs")
async def references(hub: Hub, request: Request, repo: str) -> Response:
    found = hub.readable(request, repo)
    answer = {"branches": _refs(found, BRANCHES), "tags": _refs(found, TAGS), "converts": []}
    if _flag(request, "include_prs"):
        answer["pullRequests"] = _refs(found, PULL_REQUESTS)
    return JSONResponse(answer)


@routes.add("GET", "/api/models/{repo}/commits/{rev}")
async def commits(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    found = hub.readable(request, repo)
    return JSONResponse(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": "",
                "date": commit.date,
                "authors": [{"user": found.owner}],
            }
            for commit in found.history(rev)
        ]
    )


@routes.add("GET", "/api/models/{repo}/auth-check")
async def may_download(hub: Hub, request: Request, repo: str) -> Response:
    hub.downloadable(request, repo)
    return JSONResponse({})


def _info(hub: Hub, found: Repository, commit: Commit, with_blobs: bool) -> dict[str, Any]:
    readme = commit.tree.get("README.md")
    metadata = card.metadata(hub.blobs.path(readme.sha256).read_text("utf-8")) if readme else {}
    siblings = [
        {"rfilename": path} | ({"size": file.size, "blobId": file.oid} | file.lfs_entry("sha256") if with_blobs else {})
        for path, file in sorted(commit.tree.items())
    ]
    return {
        "_id": found.id,
        "id": found.id,
        "modelId": found.id,
        "author": found.owner,
        "sha": commit.sha,
        "lastModified": commit.date,
        "private": found.private,
        "gated": "manual" if found.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": metadata.get("tags") or [],
        "cardData": metadata,
        "library_name": metadata.get("library_name"),
        "siblings": siblings,
    }


def _refs(found: Repository, prefix: str) -> list[dict[str, str]]:
    """Pull requests go by their full names."""
    return [
        {"name": re.sub("^refs/(heads|tags)/", "", ref), "ref": ref, "targetCommit": sha}
        for ref, sha in found.refs.items()
        if ref.startswith(prefix)
    ]


def _named(asked: dict[str, Any], user: str) -> str:
    return f"{asked.get('organization') or user}/{asked['name']}"


def _private(asked: dict[str, Any], default: bool) -> bool:
    """Newer clients name the visibility instead."""
    if "visibility" in asked:
        return bool(asked["visibility"] == "private")
    return bool(asked.get("private", default))


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("1", "true")
