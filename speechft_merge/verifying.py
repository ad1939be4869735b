"""Verifies an output from its manifest: that its files are whole, or that the merge would make them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import MismatchError, NotFoundError, UsageError
from speechft_merge.merging import open_merge
from speechft_merge.options import MergeOptions
from speechft_merge.output.checksums import matches
from speechft_merge.output.output import has_digest
from speechft_merge.output.replay import Difference
from speechft_merge.recipe import Recipe
from speechft_merge.record.manifest import NAME, describe_input, read_manifest
from speechft_merge.sources.reference import at_commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.executor.executor import Progress
    from speechft_merge.merging import Merge
    from speechft_merge.record.manifest import Manifest
    from speechft_merge.sources.reference import Reference


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found in an output."""

    output: Path
    quick: bool
    """Whether its checksums alone were compared."""
    files: tuple[str, ...]
    """The files that were looked at."""
    differences: tuple[Difference, ...]
    """Where they are not what they should be; empty if all is well."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        told = [difference.to_json() for difference in self.differences]
        verified = not self.differences
        return {"verified": verified, "quick": self.quick, "files": list(self.files), "differences": told}


def verify(
    output: str | Path, models: Sequence[Reference] = (), *, quick: bool = False,
    options: MergeOptions | None = None, progress: Progress | None = None,
) -> Verification:  # fmt: skip
    """Make the merge of an output again from its manifest, and compare it with the files, byte by byte.

    Nothing is written, and no more memory taken than a merge takes. The model card may be edited and is not compared.

    Args:
        output: the directory of a merge.
        models: base and fine-tunes, where they do not lie any more where the manifest says; models on the Hub are
            read at the commit that was merged.
        quick: compare the checksums of the manifest alone; no model is read.
        options: `workers`, `device` and `download` matter.
        progress: called from time to time with the bytes done and the total.

    Raises:
        NotFoundError: there is no manifest of this version, or an input is gone.
        MismatchError: an input is not the one that was merged.

    Example:
        >>> from tempfile import mkdtemp
        >>> from speechft_merge import merge, verify
        >>> output = mkdtemp() + "/merged"
        >>> _ = merge("examples/pair/base", "examples/pair/finetuned", output)
        >>> verify(output).differences
        ()
    """
    folder = Path(output)
    found = read_manifest(folder)
    if found is None:
        raise NotFoundError(
            f"{folder} has no {NAME} that this version can read",
            hint="name the output of a merge; one of an older version is to be merged again",
        )
    files = (*(entry.file for entry in found.outputs), *(entry.file for entry in found.companions))
    if quick:
        return Verification(folder, True, files, tuple(_damaged(folder, found)))
    records = (found.base, *found.finetuned)
    references = [*models] or [at_commit(entry.reference, entry.hub) for entry in records]
    if len(references) != len(records):
        raise UsageError(f"{len(references)} models are given, {len(records)} were merged", hint="give them all")
    with open_merge(references[0], references[1:], Recipe.from_json(found.recipe), _options(found, options)) as opened:
        _require_inputs(opened, found)
        return Verification(folder, False, files, tuple(opened.replay(folder, progress)))


def _options(found: Manifest, options: MergeOptions | None) -> MergeOptions:
    """Return the options under which the merge was made, as far as they have an effect on its files."""
    size = sum(entry.size for entry in found.outputs)
    return replace(
        options or MergeOptions(), max_shard_size=found.max_shard_size, max_output=size, allow_unrelated=True,
        allow_partial=True,
    )  # fmt: skip


def _damaged(folder: Path, found: Manifest) -> list[Difference]:
    """Return the files whose checksums are not those of the manifest."""
    damaged = [entry.file for entry in found.outputs if not matches(folder, entry)]
    damaged += [entry.file for entry in found.companions if not has_digest(folder / entry.file, entry.sha256)]
    return [Difference(file, "it is missing, or its checksum differs") for file in damaged]


def _require_inputs(opened: Merge, found: Manifest) -> None:
    """Refuse models that are not those that were merged.

    Raises:
        MismatchError: one has other weights.
    """
    for model, entry in zip(opened.models, (found.base, *found.finetuned), strict=True):
        if describe_input(model).fingerprint != entry.fingerprint:
            raise MismatchError(
                f"{model.reference} is not what was merged: its weights changed since",
                hint="give the models as they were: speechft-merge verify OUTPUT BASE FINETUNED...",
            )
