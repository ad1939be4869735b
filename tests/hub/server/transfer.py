"""The contents of files, down and up: resolve, the CDN behind it, Git LFS and Xet's tokens."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .errors import HubError
from .hub import Hub
from .routing import Routes

routes = Routes()

BLOCK = 2**20


class Slice(Response):
    """`length` bytes of a file, read as they are sent."""

    def __init__(self, path: Path, start: int, length: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(length)})
        self._path, self._start, self._length = path, start, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._length if scope["method"] == "GET" else 0
        with self._path.open("rb") as file:
            file.seek(self._start)
            while left:
                block = file.read(min(BLOCK, left))
                left -= len(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body"})


@routes.add("GET HEAD", "/{repo}/resolve/{rev}/{path}")
async def resolve(hub: Hub, request: Request, repo: str, rev: str, path: str) -> Response:
    commit = hub.downloadable(request, repo).find(rev)
    told = {"X-Repo-Commit": commit.sha}
    if path not in commit.tree:
        raise HubError(404, "Entry not found", "EntryNotFound", told)
    file = commit.tree[path]
    told |= {"ETag": f'"{file.etag}"', "Content-Disposition": f'inline; filename="{Path(path).name}"'}
    if not file.lfs:
        return _content(hub.blobs.path(file.sha256), request, told)
    told |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
    if file.xet_hash:
        token = f"{hub.endpoint}/api/models/{repo}/xet-read-token/{commit.sha}"
        told |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return Response("Found. Redirecting", 302, {**told, "Location": hub.sign(f"/cdn/{file.sha256}")})


@routes.add("GET HEAD", "/cdn/{sha256}")
async def download(hub: Hub, request: Request, sha256: str) -> Response:
    if refusal := _refusal(hub, request, f"/cdn/{sha256}"):
        return refusal
    return _content(hub.blobs.path(sha256), request, {"ETag": f'"{sha256}"'})


@routes.add("POST", "/{repo}.git/info/lfs/objects/batch")
async def lfs_batch(hub: Hub, request: Request, repo: str) -> Response:
    """A pull request's files go here too, so who may only propose changes may upload; the commit is another matter."""
    hub.writable(request, repo, by_pull_request=True)
    asked = (await request.json())["objects"]
    objects = [_lfs_object(hub, repo, item["oid"], item["size"]) for item in asked]
    return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")


@routes.add("PUT", "/lfs/{sha256}")
async def upload(hub: Hub, request: Request, sha256: str) -> Response:
    if refusal := _refusal(hub, request, f"/lfs/{sha256}"):
        return refusal
    if not await hub.blobs.receive(sha256, request.stream()):
        return Response("<Error><Code>BadDigest</Code></Error>", 400, media_type="application/xml")
    return Response()


@routes.add("POST", "/{repo}.git/info/lfs/objects/verify")
async def verify(hub: Hub, request: Request, repo: str) -> Response:
    hub.writable(request, repo, by_pull_request=True)
    asked = await request.json()
    if asked["oid"] not in hub.blobs or hub.blobs.path(asked["oid"]).stat().st_size != asked["size"]:
        raise HubError(404, "Object not found")
    return JSONResponse({})


@routes.add("GET", "/api/models/{repo}/xet-read-token/{rev}")
async def xet_read_token(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    hub.downloadable(request, repo)
    return _xet_token(hub)


@routes.add("GET", "/api/models/{repo}/xet-write-token/{rev}")
async def xet_write_token(hub: Hub, request: Request, repo: str, rev: str) -> Response:
    hub.writable(request, repo, by_pull_request=request.query_params.get("create_pr") == "1")
    return _xet_token(hub)


def _xet_token(hub: Hub) -> Response:
    if hub.cas is None:
        raise HubError(404, "Xet is not enabled")
    expires = int(time.time()) + 3600
    told = {"X-Xet-Cas-Url": hub.cas.url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
    return JSONResponse({"casUrl": hub.cas.url, "accessToken": "xet", "exp": expires}, headers=told)


def _lfs_object(hub: Hub, repo: str, sha256: str, size: int) -> dict[str, object]:
    known: dict[str, object] = {"oid": sha256, "size": size}
    if sha256 in hub.blobs:
        return known
    verify = f"{hub.endpoint}/{repo}.git/info/lfs/objects/verify"
    actions = {"upload": {"href": hub.sign(f"/lfs/{sha256}"), "header": {}}, "verify": {"href": verify, "header": {}}}
    return known | {"authenticated": True, "actions": actions}


def _refusal(hub: Hub, request: Request, path: str) -> Response | None:
    """What S3 says to a URL that does not hold, and to a token that it has no business to see."""
    if "authorization" in request.headers:
        return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
    if not hub.signed(request, path):
        return _xml(403, "AccessDenied", "Request has expired")
    return None


def _xml(status: int, code: str, message: str) -> Response:
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(error, status, media_type="application/xml")


def _content(path: Path, request: Request, headers: Mapping[str, str]) -> Response:
    """The file or, if asked for, a range of it."""
    size = path.stat().st_size
    told = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = _wanted(request.headers.get("range", ""), size)
    if wanted is None:
        return Slice(path, 0, size, 200, told)
    if not wanted:
        return Response(None, 416, {"Content-Range": f"bytes */{size}"})
    told["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    return Slice(path, wanted.start, len(wanted), 206, told)


def _wanted(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for, empty if there are none; None if there is no (single) range in it."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return range(max(0, size - int(match[2])), size)
    start, last = int(match[1]), int(match[2] or size)
    return range(start, min(last + 1, size)) if start <= last or not match[2] else None
