"""Refusals, in the form the client maps to its exceptions."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


class HubError(Exception):
    """`code` is what the client looks at first: RepoNotFound, RevisionNotFound, EntryNotFound or GatedRepo."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        headers: Mapping[str, str] = {},
        body: Mapping[str, object] = {},
    ) -> None:
        super().__init__(message)
        told = {"X-Error-Message": message.encode("ascii", "backslashreplace").decode()}
        if code:
            told["X-Error-Code"] = code
        self.response = JSONResponse({"error": message, **body}, status, {**told, **headers})
