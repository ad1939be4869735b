"""Makes the commit: every file of an output, and out goes what would be loaded in its place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.push.leftovers import Changes, decide_changes
from speechft_merge.push.outgoing import clean_contents, list_outgoing
from speechft_merge.record import card
from speechft_merge.sources.hub_errors import HubError, hub_errors

if TYPE_CHECKING:
    from pathlib import Path

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


def push(folder: Path, target: PushTarget, message: str | None = None) -> Pushed:
    """Commit every file of a merged model, and delete from the repository what would be loaded instead.

    Raises:
        NotFoundError, CheckpointError: see `outgoing.list_outgoing`.
        HubError: refused; also if the repository changed since `prepare_push`.
        TemporaryError: the Hub failed or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    outgoing = list_outgoing(folder)
    cleaned = clean_contents(outgoing)
    changes = decide_changes(target.files, outgoing)
    disable_progress_bars()
    # paths, not open files: the client hands those to Xet, and reads others into memory
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=cleaned.get(name, str(path)))
        for name, path in outgoing.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in changes.deleted]
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
    replaced_card = target.foreign_card and card.NAME in changes.replaced
    return Pushed(target.repo, commit.pr_url or commit.commit_url, changes, replaced_card)
