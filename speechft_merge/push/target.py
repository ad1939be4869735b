"""Finds out before a merge whether its result can be pushed to a repository, and what that holds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import SpeechFTMergeError
from speechft_merge.record import card
from speechft_merge.sources.client import bound_client
from speechft_merge.sources.hub_errors import HubError, hub_errors
from speechft_merge.sources.reference import HubReference
from speechft_merge.sources.retries import persist

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
_MAX_CARD = 1 << 20
"""Bytes of a card that are read."""


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
    foreign_card: bool = False
    """Whether its README.md is one that no merge wrote."""


def prepare_push(repo: str, *, private: bool = False, create_pr: bool = False, branch: str | None = None) -> PushTarget:
    """Check before any work that the push can succeed; create the repository if it does not exist.

    Raises:
        HubError: no token, a wrong one, or one that may not write there.
        NotFoundError: a pull request to a repository that does not exist.
        TemporaryError: the Hub cannot be reached, or limits the rate.
    """
    bound_client()
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise HubError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to {repo}", hint="push where there is a network"
        )
    api = HfApi()
    with hub_errors(repo):
        try:
            account = persist(api.whoami)
        except LocalTokenNotFoundError:
            raise HubError("pushing needs a token", hint="run 'hf auth login', or set HF_TOKEN") from None
        role = account.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"your token is read-only, so nothing can be pushed to {repo}", hint="use a token with write role"
            )
        if not create_pr:
            _require_namespace(repo, account)
            repo = persist(lambda: api.create_repo(repo, private=private or None, exist_ok=True)).repo_id
            if branch is not None:
                persist(lambda: api.create_branch(repo, branch=branch, exist_ok=True))
        info = persist(lambda: api.model_info(repo, revision=branch, timeout=constants.HF_HUB_ETAG_TIMEOUT))
    if private and info.private is False:
        raise HubError(
            f"{repo} already exists and is public, and --private applies to a new one only",
            hint="make it private on the Hub first, choose another name, or leave --private out",
        )
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    foreign = card.NAME in files and not _is_ours(HubReference(repo, str(info.sha)))
    return PushTarget(repo, branch, private, create_pr, str(info.sha), files, foreign)


def _is_ours(reference: HubReference) -> bool:
    """Return whether a merge wrote the card of a repository; one that cannot be read is somebody's."""
    from speechft_merge.sources.hub import open_hub_folder

    try:
        folder, _ = open_hub_folder(reference)
        with folder.open(card.NAME) as source:
            return card.is_ours(source.read(0, min(source.size, _MAX_CARD)).decode(errors="replace"))
    except SpeechFTMergeError:
        return False


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
