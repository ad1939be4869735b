"""Pushes a merged model to the Hub: checks the rights first, then makes one commit of every file."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import NotFoundError
from speechft_merge.record.manifest import FIGURE, SIMILARITY
from speechft_merge.record.manifest import NAME as MANIFEST
from speechft_merge.sources.hub_errors import HubError, hub_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WEIGHTS = re.compile(
    r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?|merged_model\.(pt|pth|ckpt|bin)"
)
"""Names under which loaders find weights: those of an earlier push must not stay beside new ones."""


@dataclass(frozen=True, slots=True)
class PushTarget:
    """A repository that the token may write to, and its commit when that was checked."""

    repo: str
    branch: str | None
    private: bool
    create_pr: bool
    parent: str
    files: frozenset[str]
    """Files in the repository at that commit."""


def prepare_push(repo: str, *, private: bool = False, create_pr: bool = False, branch: str | None = None) -> PushTarget:
    """Check before any work that the push can succeed; create the repository if it does not exist.

    Raises:
        HubError: no token, a wrong one, or one that may not write there.
        NotFoundError: a pull request to a repository that does not exist.
        TemporaryError: the Hub cannot be reached, or limits the rate.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise HubError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to {repo}", hint="push where there is a network"
        )
    api = HfApi()
    with hub_errors(repo):
        try:
            account = api.whoami()
        except LocalTokenNotFoundError:
            raise HubError("pushing needs a token", hint="run 'hf auth login', or set HF_TOKEN") from None
        role = account.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"your token is read-only, so nothing can be pushed to {repo}", hint="use a token with write role"
            )
        if not create_pr:
            _require_namespace(repo, account)
            repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
            if branch is not None:
                api.create_branch(repo, branch=branch, exist_ok=True)
        info = api.model_info(repo, revision=branch, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if private and info.private is False:
        raise HubError(
            f"{repo} already exists and is public, and --private applies to a new one only",
            hint="make it private on the Hub first, choose another name, or leave --private out",
        )
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    return PushTarget(repo, branch, private, create_pr, str(info.sha), files)


def _require_namespace(repo: str, account: Mapping[str, Any]) -> None:
    """Raise HubError if the token is of another namespace: the client checks no rights to a repository that exists."""
    namespace, slash, _ = repo.partition("/")
    own = [account.get("name"), *(organisation.get("name") for organisation in account.get("orgs") or ())]
    if slash and namespace not in own:
        raise HubError(
            f"your token is {own[0]}'s and may not write to {repo} (nothing was pushed)",
            hint=f"push to one of {', '.join(f'{name}/...' for name in own)}, or pass --create-pr",
        )


def push_command(folder: Path | str, target: PushTarget, message: str | None) -> str:
    """Return the command line that pushes a merged model to the same repository."""
    words = ["speechft-merge", "push", str(folder), target.repo]
    words += [flag for flag, given in (("--private", target.private), ("--create-pr", target.create_pr)) if given]
    words += ["--branch", target.branch] if target.branch else []
    words += ["--commit-message", message] if message else []
    return shlex.join(words)


def require_merged(folder: Path) -> None:
    """Refuse a folder that is not the output of a merge.

    Raises:
        NotFoundError: it has no manifest.
    """
    if not (folder / MANIFEST).is_file():
        raise NotFoundError(f"{folder} is not the output of a merge (no {MANIFEST} in it)")


def push(folder: Path, target: PushTarget, message: str | None = None) -> str:
    """Commit every file of a merged model; return the URL of the commit, or of the pull request.

    Raises:
        NotFoundError: the folder is not the output of a merge.
        HubError: refused; also if the repository changed since `prepare_push`.
        TemporaryError: the Hub failed or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    require_merged(folder)
    disable_progress_bars()
    # paths, not open files: the client hands those to Xet, and reads others into memory
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=str(path)) for path in paths
    ]
    ours = {name for name in target.files if _WEIGHTS.fullmatch(name) or name in (SIMILARITY, FIGURE)}
    stale = ours - {path.name for path in paths}
    operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
    with hub_errors(target.repo):
        try:
            commit = HfApi().create_commit(
                target.repo,
                operations,
                commit_message=message or "Merge by speechft-merge",
                revision=target.branch,
                create_pr=target.create_pr or None,
                parent_commit=None if target.create_pr else target.parent,
            )
        except HfHubHTTPError:  # some are ValueErrors as well
            raise
        except ValueError as error:  # the Hub rejects the card's front matter
            raise HubError(f"{target.repo}: {str(error).strip()}") from error
    return commit.pr_url or commit.commit_url
