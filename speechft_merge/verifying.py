"""Verifies an output from its manifest: that its files are whole, or that the merge would make them again."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechft_merge.arguments import listed, or_default, path_of, text_path
from speechft_merge.display import Told
from speechft_merge.errors import CheckpointError, MismatchError, NotFoundError, UsageError, amount
from speechft_merge.merging import open_merge
from speechft_merge.options import MergeOptions
from speechft_merge.output.checksums import matches
from speechft_merge.output.output import has_digest
from speechft_merge.output.replay import Difference
from speechft_merge.progress import Step, silent
from speechft_merge.recipe import Recipe
from speechft_merge.record.identity import FORMAT
from speechft_merge.record.manifest import NAME, read_manifest
from speechft_merge.sources.nearby import nearest
from speechft_merge.sources.reference import at_commit, local_path
from speechft_merge.text import fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from speechft_merge.arguments import PathText
    from speechft_merge.merging import Merge
    from speechft_merge.progress import Progress
    from speechft_merge.record.manifest import InputRecord, Manifest
    from speechft_merge.sources.reference import Reference

MOST = 10
"""Differences that are told, if not verbosely."""
_GIVE = "give the models as they were merged: speechft-merge verify OUTPUT BASE FINETUNED..."
_DAMAGED = "it is missing, or its checksum is not that of the manifest"


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Told):
    """What was found in an output; `verify` returns it.

    Args:
        output: the directory.
        quick: whether its checksums alone were compared.
        files: the files that were looked at.
        differences: where they are not what they should be; empty if all is well.
    """

    output: Path
    quick: bool
    files: tuple[str, ...]
    differences: tuple[Difference, ...]

    def __repr__(self) -> str:
        return f"<Verification of {self.output.name}: {len(self.files)} files, {len(self.differences)} differences>"

    def parts(self, verbose: int = 0) -> Iterator[str]:
        """Yield what differs, verbosely all of it; or that nothing does."""
        for difference in self.differences[: None if verbose else MOST]:
            yield fit(str(difference))
        if not verbose and len(self.differences) > MOST:
            yield f"and {len(self.differences) - MOST} more (-v)"
        if not self.differences:
            files = f"{len(self.files)} files"
            yield f"{files} have the checksums of the manifest" if self.quick else f"{files} are what the merge makes"

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        told = [difference.to_json() for difference in self.differences]
        verified = not self.differences
        return {"verified": verified, "quick": self.quick, "files": list(self.files), "differences": told}


def verify(
    output: PathText, models: Sequence[Reference] = (), *, quick: bool = False,
    options: MergeOptions | None = None, progress: Progress = silent,
) -> Verification:  # fmt: skip
    """Make the merge of an output again from its manifest, and compare it with the files, byte by byte.

    Nothing is written, and no more memory taken than a merge takes. The model card may be edited and is not compared.

    Args:
        output: the directory of a merge.
        models: base and fine-tunes, where they do not lie any more where the manifest says; models on the Hub are
            read at the commit that was merged.
        quick: compare the checksums of the manifest alone; no model is read.
        options: `workers`, `device` and `download` matter.
        progress: told how far it is: `print`, for one.

    Raises:
        NotFoundError: there is no manifest of this version, or an input is gone.
        CheckpointError: the manifest is damaged.
        MismatchError: an input is not the one that was merged.

    Example:
        >>> from tempfile import mkdtemp
        >>> from speechft_merge import merge, verify
        >>> output = mkdtemp() + "/merged"
        >>> _ = merge("examples/pair/base", "examples/pair/finetuned", output)
        >>> verify(output).differences
        ()
    """
    folder, models = path_of(output, "output"), [text_path(model, "models") for model in listed(models)]
    options = or_default(options, MergeOptions, "options")
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder}", found=nearest(str(folder)), hint="name the output of a merge"
        )
    found = read_manifest(folder)
    if found is None or found.format != FORMAT:
        raise NotFoundError(
            f"{folder} has no {NAME} that this version can read",
            hint="name the output of a merge; one of another version is to be merged again",
        )
    progress(Step("comparing checksums"))
    files = (*(entry.file for entry in found.outputs), *(entry.file for entry in found.companions))
    damaged = [Difference(file, _DAMAGED) for file in _damaged(folder, found)]
    if quick:
        if models:
            raise UsageError("models have no effect with --quick", hint="leave them out, or --quick")
        return Verification(folder, True, files, tuple(damaged))
    recipe, options = _asked(folder, found, options)
    references = models or [_reference(entry) for entry in (found.base, *found.finetuned)]
    if len(references) != 1 + len(found.finetuned):
        raise UsageError(
            f"{amount(len(references), 'model', 'is', 'are')} given, {1 + len(found.finetuned)} were merged",
            hint=_GIVE,
        )
    with _opened(folder, references, recipe, options) as opened:
        _require_inputs(opened, found)
        differences = opened.replay(folder, progress)
        if opened.identity != found.merge_id:
            differences.append(Difference(NAME, "it is the record of another merge"))
    known = {difference.file for difference in differences}
    return Verification(folder, False, files, (*differences, *(one for one in damaged if one.file not in known)))


def _damaged(folder: Path, found: Manifest) -> list[str]:
    """Return the files whose checksums are not those of the manifest."""
    damaged = [entry.file for entry in found.outputs if not matches(folder, entry)]
    return damaged + [entry.file for entry in found.companions if not has_digest(folder / entry.file, entry.sha256)]


def _asked(folder: Path, found: Manifest, options: MergeOptions) -> tuple[Recipe, MergeOptions]:
    """Return the recipe of a merge, and the options that had an effect on its files.

    Raises:
        CheckpointError: the manifest has values that no merge has.
    """
    free = replace(options, max_output=sys.maxsize, allow_unrelated=True, allow_partial=True)
    try:
        return Recipe.from_json(found.recipe), replace(free, max_shard_size=found.max_shard_size)
    except UsageError as error:
        raise CheckpointError(f"{folder / NAME} is damaged: {error.message}") from error


def _reference(entry: InputRecord) -> str:
    """Return where an input was: on the Hub at its commit, or on disk; a path that is gone is no name on the Hub.

    Raises:
        NotFoundError: there is no such path.
    """
    if entry.hub is None and local_path(entry.reference) is None:
        raise NotFoundError(f"{entry.reference}, which was merged, is not there", hint=_GIVE)
    return at_commit(entry.reference, entry.hub)


def _opened(folder: Path, references: Sequence[Reference], recipe: Recipe, options: MergeOptions) -> Merge:
    """Open the models as they were merged.

    Raises:
        MismatchError: the recipe does not go with them.
    """
    try:
        return open_merge(references[0], references[1:], recipe, options)
    except UsageError as error:
        raise MismatchError(f"the merge in {folder} is not one of these models: {error.message}", hint=_GIVE) from error


def _require_inputs(opened: Merge, found: Manifest) -> None:
    """Refuse models that are not those that were merged.

    Raises:
        MismatchError: one has other weights.
    """
    for model, now, then in zip(opened.models, opened.inputs, (found.base, *found.finetuned), strict=True):
        if now.fingerprint != then.fingerprint:
            raise MismatchError(
                f"{model.reference} is not what was merged: it has other weights, or as an adapter other settings",
                hint=_GIVE,
            )
