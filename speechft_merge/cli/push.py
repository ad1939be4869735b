"""Defines `speechft-merge push DIR REPO`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechft_merge.cli.groups import with_groups
from speechft_merge.cli.options import HubOptions
from speechft_merge.cli.progress import ProgressLine
from speechft_merge.cli.show_push import show_push
from speechft_merge.cli.sink import Sink

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The output of a merge.")]
Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="Where to: org/name on the Hub; it is created if it does not exist.")
]


@with_groups
def push(folder: Folder, repository: Repository, hub: HubOptions, sink: Sink) -> None:
    """Push a merged model to the Hub, in one commit.

    Examples:
      speechft-merge push merged me/mix --private
      speechft-merge push merged me/mix --create-pr --commit-message 'Try 0.5'
    """
    from speechft_merge.background import wait_for
    from speechft_merge.push import push as push_folder
    from speechft_merge.push.outgoing import list_outgoing

    list_outgoing(folder)  # what cannot be pushed makes no repository
    with ProgressLine(sink, f"{folder} -> {repository}") as progress:
        target = hub.prepare(repository)
        pushed = wait_for(lambda: push_folder(folder, target, hub.commit_message, progress))
    sink.show(show_push(pushed))
