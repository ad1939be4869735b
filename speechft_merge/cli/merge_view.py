"""Shows what `merge` did, or with `--dry-run` what it would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.layer_table import in_words, layer_parts
from speechft_merge.cli.sink import Table, View
from speechft_merge.cli.text import megabytes
from speechft_merge.executor.drift import Drift
from speechft_merge.output.place import free_space
from speechft_merge.record.layers import summarise_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from speechft_merge.merging import Merge, MergeResult
    from speechft_merge.similarity.report import Report


@dataclass(frozen=True, slots=True)
class MergeView(View):
    """What was merged, layer by layer, what that did to the features, and where it is."""

    result: MergeResult
    output: str
    """The output, as the user named it."""
    url: str | None = None
    report: Report | None = None
    problem: str | None = None
    """Why the features could not be compared."""

    @property
    def headline(self) -> str:
        """Where the merged model is."""
        return self.url or self.output

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings of the merge and of the comparison."""
        return (*self._own_warnings, *(() if self.report is None else self.report.warnings))

    @property
    def _own_warnings(self) -> list[str]:
        return [*self.result.warnings, *([self.problem] if self.problem else [])]

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints: the manifest, and what is no part of it."""
        extra = {"output": self.output, "pushed": self.url, "already_done": self.result.already_done}
        similarity = {} if self.report is None else {"similarity": self.report.to_json()}
        return extra | {"warnings": self._own_warnings} | self.result.manifest.to_json() | similarity

    def body(self, verbose: int) -> Iterator[Table | str]:
        """Yield the layers, the counts and the comparison; the last line is where the model is."""
        if self.result.already_done:
            yield "already done: the output exists, is complete, and has the same inputs and recipe"
        else:
            yield from layer_parts(self.result.manifest.layers)
            drift = Drift.relative(self.result.drifts.values())
            moved = "" if drift is None else f"; the fine-tune lies {drift:.2%} from the base"
            yield in_words(self.result.manifest.counts) + moved
        if self.report is not None:
            from speechft_merge.cli.report_view import ReportView  # imports torch

            yield from ReportView(self.report).body(verbose)
        yield self.headline


@dataclass(frozen=True, slots=True)
class PlanView(View):
    """What a merge would do."""

    merge: Merge
    place: Path
    output: str
    """The output, as the user named it."""

    @property
    def headline(self) -> str:
        """Where the merged model would be."""
        return self.output

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings that the merge would give."""
        return self.merge.warnings

    def document(self) -> dict[str, Any]:
        """Return what `--dry-run --json` prints."""
        plan, files = self.merge.plan, self.merge.files
        return {
            "output": self.output,
            "recipe": plan.recipe.to_json(),
            "counts": plan.counts,
            "coverage": min(plan.coverages),
            "files": [{"file": file.name, "size": file.size} for file in files.files],
            "companions": sorted(self.merge.companions),
            "read_bytes": files.read_bytes,
            "needed_bytes": files.size,
            "free_bytes": free_space(self.place)[1],
            "workers": self.merge.workers.count,
            "workers_reason": self.merge.workers.reason,
            "finetuned": [
                {"reference": checkpoint.reference, "cosine": relation.median}
                for checkpoint, relation in zip(self.merge.finetuned, self.merge.relations, strict=True)
            ],
            "layers": [row.to_json() for row in summarise_layers(plan)],
            "warnings": list(self.merge.warnings),
        }

    def body(self, verbose: int) -> Iterator[Table | str]:
        """Yield the layers, the files and what they take; the last line is where the model would be."""
        told = self.document()
        yield from layer_parts(summarise_layers(self.merge.plan))
        files = ", ".join(f"{file['file']} ({megabytes(file['size'])})" for file in told["files"])
        yield f"would write {files} and {', '.join(told['companions']) or 'no config'}"
        read, needed, free = (told[key] for key in ("read_bytes", "needed_bytes", "free_bytes"))
        space = "free space unknown" if free is None else f"{megabytes(free)} free"
        yield f"reads {megabytes(read)}, needs {megabytes(needed)} of disk ({space}), {workers_in_words(self.merge)}"
        yield from (f"{entry['reference']}: {_related(entry['cosine'])}" for entry in told["finetuned"])
        yield self.output


def details(merge: Merge, verbose: int) -> Iterator[str]:
    """Yield what `-v` adds: how closely the models are related, and with `-vv` every tensor."""
    for checkpoint, relation in zip(merge.finetuned, merge.relations, strict=True):
        yield f"{checkpoint.reference}: {checkpoint.container}, {_related(relation.median)}"
    yield workers_in_words(merge)
    if verbose > 1:
        for tensor in (*merge.plan.tensors, *merge.plan.left_out):
            alpha = f" alpha {tensor.alpha:g}" if tensor.alpha is not None else ""
            yield f"{tensor.name}: {tensor.action}{alpha} {tensor.reason}".rstrip()


def workers_in_words(merge: Merge) -> str:
    """Return `2 workers (why so many)`."""
    count = merge.workers.count
    return f"{count} worker{'s' * (count != 1)} ({merge.workers.reason})"


def _related(cosine: float | None) -> str:
    return (
        "too small to tell whether it is related to the base" if cosine is None else f"cosine to the base {cosine:.4f}"
    )
