"""`speechft-merge push DIR REPO`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechft_merge.cli import options
from speechft_merge.cli.sink import Output

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The output of a merge.")]
Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="Where to: org/name on the Hub; it is made if it is not there.")
]


def push(
    folder: Folder,
    repository: Repository,
    private: options.Private = False,
    create_pr: options.CreatePr = False,
    branch: options.Branch = None,
    commit_message: options.CommitMessage = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Put a merged model on the Hub, in one commit."""
    from speechft_merge import push as pushing

    shown = Output(json, quiet)
    pushing.require_merged(folder)
    target = pushing.prepare_push(repository, private=private, create_pr=create_pr, branch=branch)
    url = pushing.push(folder, target, commit_message)
    shown.document({"repo": target.repo, "url": url})
    shown.result(url)
