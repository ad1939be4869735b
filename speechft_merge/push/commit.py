"""Makes the commit: every file of an output, and out goes what would be loaded in its place."""

from __future__ import annotations

import io
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from speechft_merge.arguments import path_of
from speechft_merge.progress import counted, silent
from speechft_merge.push.leftovers import Changes, decide_changes
from speechft_merge.push.outgoing import clean_contents, list_outgoing
from speechft_merge.record import card
from speechft_merge.sources.client import bound_client
from speechft_merge.sources.content import is_content
from speechft_merge.sources.hub_errors import UPLOAD_EXPIRED, HubError, hub_errors
from speechft_merge.sources.retries import REFUSED, persist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    from speechft_merge.arguments import PathText
    from speechft_merge.progress import Progress
    from speechft_merge.push.target import PushTarget

_NAMED = 8
"""Files that a note names."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A commit, or a pull request, and what it does to the files that were there."""

    repo: str
    url: str
    changes: Changes
    foreign_card: bool
    """Whether it replaces a README.md that no merge wrote."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON output has it."""
        return {"repo": self.repo, "url": self.url, **asdict(self.changes)}

    @property
    def notes(self) -> list[str]:
        """What its owner may not expect, a sentence each."""
        notes, weights = [], self.changes.other_weights
        if self.changes.deleted:
            notes.append(
                f"the push deletes from {self.repo} what could be loaded instead of the merge or along with it: "
                f"{_listed(self.changes.deleted)}"
            )
        if weights:
            notes.append(f"{self.repo} keeps weights that are not of this merge: {_listed(weights)}")
        if self.foreign_card:
            notes.append(f"the push replaces the {card.NAME} of {self.repo}, which no merge wrote, by its model card")
        return notes


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def push(
    folder: PathText, target: PushTarget, message: str | None = None, progress: Progress = silent,
    check: Callable[[], None] = lambda: None,
) -> Pushed:  # fmt: skip
    """Commit every file of a merged model, and delete from the repository what would be loaded instead.

    Args:
        folder: the output of a merge.
        target: what `prepare_push` returned.
        message: first line of the commit.
        progress: told how much is uploaded, where the client does so itself; its Xet does not tell.
        check: raises if the folder is no longer what is to be pushed; called before and after it is read.

    Raises:
        NotFoundError, CheckpointError: see `outgoing.list_outgoing`.
        HubError: refused; also if the repository changed since `prepare_push`.
        TemporaryError: the Hub failed or cannot be reached.
    """
    bound_client()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    check()
    outgoing = list_outgoing(path_of(folder, "folder"))
    cleaned = clean_contents(outgoing)
    changes = decide_changes(target.files, outgoing)
    disable_progress_bars()
    # paths, not open files: the client hands those to Xet, and reads others into memory
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=cleaned.get(name, str(path)))
        for name, path in outgoing.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in changes.deleted]
    title = message or "Merge by speechft-merge"
    with hub_errors(target.repo):
        additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        count, total = counted(progress, f"pushing to {target.repo}"), sum(one.upload_info.size for one in additions)
        _tell_uploads(additions, lambda done: count(done, total))
        _upload(target, additions)
        check()
        url = _commit(target, operations, title)
        count(total, total)  # the Hub may have had some of it
    replaced_card = target.foreign_card and card.NAME in changes.replaced
    return Pushed(target.repo, url, changes, replaced_card)


def _tell_uploads(additions: Sequence[CommitOperationAdd], tell: Callable[[int], object]) -> None:
    """Have what the client reads of files, in order to upload it, counted; what it hands to Xet it does not read."""
    read: Counter[str] = Counter()

    def opening(one: CommitOperationAdd) -> Callable[..., AbstractContextManager[Any]]:
        opened = one.as_file

        def took(length: int) -> None:
            read[one.path_in_repo] = min(read[one.path_in_repo] + length, one.upload_info.size)
            tell(read.total())

        @contextmanager
        def as_file(with_tqdm: bool = False) -> Iterator[Any]:
            with opened() as file:
                yield _Told(file, took)

        return as_file

    for one in additions:
        one.as_file = opening(one)  # type: ignore[assignment,method-assign]


class _Told(io.IOBase):  # the client goes back to the start of these alone, for a second try
    """A file that tells how much is read of it."""

    def __init__(self, file: BinaryIO, took: Callable[[int], None]) -> None:
        self._file, self._took = file, took

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._took(len(content))
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def __iter__(self) -> Iterator[bytes]:
        while content := self.read(1 << 20):
            yield content


def _upload(target: PushTarget, additions: list[CommitOperationAdd]) -> None:
    """Upload what is large; what broke off begins anew, under a new URL, and what arrived does not."""
    from huggingface_hub import HfApi

    persist(
        lambda: HfApi().preupload_lfs_files(
            target.repo, additions, revision=target.branch, create_pr=target.create_pr, free_memory=False
        ),
        also=UPLOAD_EXPIRED,
    )


def _commit(target: PushTarget, operations: Sequence[CommitOperationAdd | CommitOperationDelete], message: str) -> str:
    """Make the commit, and return its URL, or that of the pull request.

    It is made on top of the commit that was looked at, so a second try after a lost answer changes nothing. A pull
    request has no such guard: it is asked for again only where the Hub said that it did nothing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    tries = 0

    def commit() -> str:
        nonlocal tries
        tries += 1
        try:
            made = HfApi().create_commit(
                target.repo,
                operations,
                commit_message=message,
                revision=target.branch,
                create_pr=target.create_pr or None,
                parent_commit=None if target.create_pr else target.parent,
            )
        except HfHubHTTPError as error:  # some are ValueErrors as well
            lost = tries > 1 and error.response.status_code == 412
            url = _found(target, operations) if lost else None
            if url is None:
                raise
            return url
        except ValueError as error:  # the Hub rejects the card's front matter
            raise HubError(f"{target.repo}: {str(error).strip()}") from error
        return made.pr_url or made.commit_url

    return persist(commit, only=REFUSED if target.create_pr else None)


def _found(target: PushTarget, operations: Sequence[CommitOperationAdd | CommitOperationDelete]) -> str | None:
    """Return the URL of a commit whose answer was lost: the newest, if it holds just what was to be pushed."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi()
    newest, *before = api.list_repo_commits(target.repo, revision=target.branch)
    if not before or before[0].commit_id != target.parent:
        return None
    added = {operation.path_in_repo: operation for operation in operations if isinstance(operation, CommitOperationAdd)}
    there = {info.path: info for info in api.get_paths_info(target.repo, [*added], revision=newest.commit_id)}
    if there.keys() != added.keys() or not all(_holds(there[name], added[name]) for name in added):
        return None
    return f"{constants.ENDPOINT}/{target.repo}/commit/{newest.commit_id}"


def _holds(there: Any, added: CommitOperationAdd) -> bool:
    """Return whether a file in the repository is the one that was added, by the checksums that the Hub has."""
    if there.lfs is not None:
        return bool(there.lfs.sha256 == added.upload_info.sha256.hex())
    with added.as_file() as file:
        content = file.read()
    return is_content(there.blob_id, len(content), [content])
