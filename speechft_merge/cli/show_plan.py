"""Shows what a merge would do, for `--dry-run`, and what `-v` tells before one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.cli.sink import Shown
from speechft_merge.display import Table, layer_parts
from speechft_merge.errors import amount
from speechft_merge.output.path import free_space
from speechft_merge.plan.findings import Level, texts
from speechft_merge.record.layers import summarise_layers
from speechft_merge.text import megabytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speechft_merge.merging import Merge


def show_plan(merge: Merge, path: Path, output: str) -> Shown:
    """Return the layers, the files and what they take; `output` is the path as the user named it."""
    free = free_space(path)[1]
    told = partial(_document, merge, output, free)
    warnings, notes = (texts(merge.findings, level) for level in (Level.WARNING, Level.NOTE))
    return Shown(told, lambda _: _parts(merge, output, free), output, warnings, notes)


def _document(merge: Merge, output: str, free: int | None) -> dict[str, Any]:
    plan, files = merge.plan, merge.files
    return {
        "output": output,
        "recipe": plan.recipe.to_json(),
        "counts": plan.counts,
        "coverage": min(plan.coverages),
        "files": [{"file": file.name, "size": file.size} for file in files.files],
        "companions": sorted(merge.companions),
        "read_bytes": files.read_bytes,
        "needed_bytes": files.size,
        "free_bytes": free,
        "device": merge.device.name,
        "device_reason": merge.device.reason,
        "workers": merge.workers.count,
        "workers_reason": merge.workers.reason,
        "finetuned": [
            {"reference": checkpoint.reference, "cosine": relation.median}
            for checkpoint, relation in zip(merge.finetuned, merge.relations, strict=True)
        ],
        "layers": [row.to_json() for row in summarise_layers(plan)],
        "warnings": list(texts(merge.findings)),
    }


def _parts(merge: Merge, output: str, free: int | None) -> Iterator[Table | str]:
    yield from layer_parts(summarise_layers(merge.plan))
    files = ", ".join(f"{file.name} ({megabytes(file.size)})" for file in merge.files.files)
    yield f"would write {files} and {', '.join(sorted(merge.companions)) or 'no config'}"
    read, needed = megabytes(merge.files.read_bytes), megabytes(merge.files.size)
    space = "free space unknown" if free is None else f"{megabytes(free)} free"
    yield f"reads {read}, needs {needed} of disk ({space}), {_workers(merge)}"
    yield from _relations(merge)
    yield output


def details(merge: Merge, verbose: int) -> Iterator[str]:
    """Yield what `-v` adds: how closely the models are related, and with `-vv` every tensor."""
    yield from _relations(merge)
    yield _workers(merge)
    if verbose > 1:
        for tensor in (*merge.plan.tensors, *merge.plan.left_out):
            alpha = f" alpha {tensor.alpha:g}" if tensor.alpha is not None else ""
            yield f"{tensor.name}: {tensor.action}{alpha} {tensor.reason}".rstrip()


def _relations(merge: Merge) -> Iterator[str]:
    for checkpoint, relation in zip(merge.finetuned, merge.relations, strict=True):
        cosine = relation.median
        related = "too small to tell whether it is related to the base"
        yield f"{checkpoint.reference}: {related if cosine is None else f'cosine to the base {cosine:.4f}'}"


def _workers(merge: Merge) -> str:
    count = merge.workers.count
    workers = f"{amount(count, 'worker')} ({merge.workers.reason})"
    return f"{workers}, on {merge.device.name} ({merge.device.reason})"
