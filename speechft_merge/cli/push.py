"""Defines `speechft-merge push DIR REPO`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import HubOptions
from speechft_merge.cli.sink import Shown, Sink

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The output of a merge.")]
Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="Where to: org/name on the Hub; it is created if it does not exist.")
]


@with_groups
def push(folder: Folder, repository: Repository, hub: HubOptions, sink: Sink) -> None:
    """Push a merged model to the Hub, in one commit."""
    from speechft_merge.push import push as push_folder
    from speechft_merge.push import require_merged

    require_merged(folder)
    target = hub.prepare(repository)
    url = push_folder(folder, target, hub.commit_message)
    sink.show(Shown(lambda: {"repo": target.repo, "url": url}, lambda _: [url], url))
