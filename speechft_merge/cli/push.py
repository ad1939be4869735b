"""Defines `speechft-merge push DIR REPO`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import HubOptions, Json, Quiet
from speechft_merge.cli.sink import Sink, View

if TYPE_CHECKING:
    from collections.abc import Iterator

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The output of a merge.")]
Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="Where to: org/name on the Hub; it is created if it does not exist.")
]


@with_groups
def push(folder: Folder, repository: Repository, hub: HubOptions, quiet: Quiet = False, json: Json = False) -> None:
    """Push a merged model to the Hub, in one commit."""
    from speechft_merge.push import push as push_folder
    from speechft_merge.push import require_merged

    require_merged(folder)
    target = hub.prepare(repository)
    Sink(quiet, json=json).show(PushView(target.repo, push_folder(folder, target, hub.commit_message)))


@dataclass(frozen=True, slots=True)
class PushView(View):
    """Where a model was pushed to."""

    repo: str
    url: str

    @property
    def headline(self) -> str:
        """The URL of the commit, or of the pull request."""
        return self.url

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"repo": self.repo, "url": self.url}

    def body(self, verbose: int) -> Iterator[str]:
        """Yield the URL."""
        yield self.url
