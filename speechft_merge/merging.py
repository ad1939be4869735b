"""The merge from end to end: open, decide, check, write, commit. The library's main verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.errors import MismatchError, UsageError
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.executor import execute
from speechft_merge.executor.workers import choose_workers
from speechft_merge.output.companions import companions_of, parse_config
from speechft_merge.output.files import INDEX
from speechft_merge.output.formats import write_form
from speechft_merge.output.staging import Staging, require_place, require_space
from speechft_merge.plan.plan import LEAST_COVERAGE, make_plan
from speechft_merge.plan.relation import Relation, measure_relation
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.record import card, manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.executor.executor import Progress
    from speechft_merge.executor.workers import Workers
    from speechft_merge.output.files import OutputFile, OutputFiles
    from speechft_merge.plan.plan import Plan


@dataclass(slots=True)
class Prepared:
    """Everything decided and checked, nothing written."""

    base: Checkpoint
    finetuned: list[Checkpoint]
    plan: Plan
    files: OutputFiles
    companions: dict[str, bytes]
    relations: list[Relation]
    """Of each fine-tune to the base."""
    workers: Workers
    warnings: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Close the inputs."""
        for checkpoint in (self.base, *self.finetuned):
            checkpoint.close()


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge left behind."""

    output: Path
    manifest: dict[str, Any]
    plan: Plan
    drifts: dict[str, Drift]
    """By output name, of every tensor that was mixed; empty if the merge was done already."""
    already_done: bool = False
    warnings: tuple[str, ...] = ()


def prepare(
    base: str, finetuned: Sequence[str], recipe: Recipe | None = None, *, max_shard_size: int | None = None,
    force: bool = False, workers: int | None = None, download: bool = False,
) -> Prepared:  # fmt: skip
    """Open the models, decide on every tensor, and check that the models belong together.

    Args:
        base: the pre-trained model: a directory, a file, or `org/name[@revision][:path]` on the Hub.
        finetuned: one or more fine-tunes of it.
        recipe: alphas and the like; the default is Speech-FT's alpha of 0.25 for everything.
        max_shard_size: bytes of a weights file; None for a single one.
        force: merge even if the evidence says that the models are not related, or if the fine-tune covers little.
        workers: threads; None to choose.
        download: fetch what lies on the Hub into huggingface_hub's cache first.

    Raises:
        NotFoundError, CheckpointError: see `checkpoints.open_checkpoint`.
        MismatchError, UsageError: see `plan.make_plan`; or the models are not related.
        HubError, TemporaryError: see `sources.hub_errors`.
    """
    if not finetuned:
        raise UsageError("a fine-tuned model is missing; give the base first, then one or more fine-tunes of it")
    opened = [open_checkpoint(reference, download) for reference in (base, *finetuned)]
    plan = make_plan(opened[0], opened[1:], recipe or Recipe())
    warnings: list[str] = []
    relations = [measure_relation(plan, which) for which in range(len(finetuned))]
    for checkpoint, relation, coverage in zip(opened[1:], relations, plan.coverages, strict=True):
        _require_related(opened[0], checkpoint, coverage, relation, force, warnings)
    written = write_form(plan, opened[1] if plan.recipe.keep_head else opened[0], max_shard_size)
    companions = companions_of(written.plan, opened[0], opened[1:], written.companions)
    return Prepared(
        opened[0], opened[1:], written.plan, written.files, companions, relations,
        choose_workers(written.files.size, workers, plan.converts), warnings,
    )  # fmt: skip


def merge(
    base: str, finetuned: str | Sequence[str], output: str | Path, recipe: Recipe | None = None, *,
    alpha: float | None = None, max_shard_size: int | None = None, force: bool = False, workers: int | None = None,
    download: bool = False, durable: bool = True, progress: Progress | None = None, command: Sequence[str] = (),
) -> MergeResult:  # fmt: skip
    """Merge models into a model directory; see `prepare` for the arguments not told here.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        output: the directory to make.
        recipe: alphas and the like.
        alpha: short for a recipe that has nothing but this.
        max_shard_size: bytes of a weights file.
        force: also replace an output that is there.
        workers: threads.
        download: fetch first, merge then.
        durable: wait until the output is on the disk (fsync).
        progress: called now and then with bytes done and bytes in all.
        command: the command line, for the manifest.

    Raises:
        OutputError, WriteError: the output is there already, or cannot be written.
    """
    if alpha is not None:
        if recipe is not None:
            raise UsageError("give alpha or a recipe, not both")
        recipe = Recipe(alpha=alpha)
    finetuned = [finetuned] if isinstance(finetuned, str) else list(finetuned)
    output = require_place(output, (base, *finetuned))
    prepared = prepare(
        base, finetuned, recipe, max_shard_size=max_shard_size, force=force, workers=workers, download=download
    )
    try:
        return write(prepared, output, force=force, durable=durable, progress=progress, command=command)
    finally:
        prepared.close()


def write(
    prepared: Prepared, output: Path, *, force: bool = False, durable: bool = True, progress: Progress | None = None,
    command: Sequence[str] = (),
) -> MergeResult:  # fmt: skip
    """Carry out what was prepared; see `merge`."""
    plan, files = prepared.plan, prepared.files
    inputs = [manifest.describe_input(checkpoint) for checkpoint in (prepared.base, *prepared.finetuned)]
    merge_id = manifest.identify(plan, files, inputs, prepared.companions)
    if manifest.proves(output, merge_id):
        return _already_done(prepared, output)
    manifest.require_replaceable(output, force)
    staging = Staging(output, merge_id, durable)
    try:
        require_space(output, sum(file.size for file in files.files if file.name not in staging.finished))
        entries, drifts = _write_weights(prepared, staging, progress)
        company = _write_company(prepared, staging, drifts, command)
        document = manifest.make_manifest(plan, merge_id, inputs, entries, drifts, company, command)
        staging.put(manifest.NAME, manifest.encode(document))
        staging.commit(lambda: manifest.require_replaceable(output, force))
    except BaseException as error:
        if isinstance(error, Exception) and manifest.proves(output, merge_id):  # another run was faster
            staging.yield_to()
            return _already_done(prepared, output)
        if staging.abandon():
            error.add_note("finished shards are kept; the same command goes on from there")
        raise
    if drifts and not any(drift.changed for drift in drifts.values()):
        prepared.warnings.append(
            "the fine-tune does not differ from the base anywhere: was its encoder frozen? The merge is the base"
        )
    return MergeResult(output, document, plan, drifts, False, tuple(prepared.warnings))


def _write_weights(
    prepared: Prepared, staging: Staging, progress: Progress | None
) -> tuple[list[dict[str, Any]], dict[str, Drift]]:
    """Every weight file that is not there from an earlier run; their manifest entries, and what was measured."""
    entries: list[dict[str, Any]] = []
    drifts: dict[str, Drift] = {}
    done = 0
    for planned in prepared.files.files:
        entry = staging.finished[planned.name] if staging.is_finished(planned) else None
        if entry is None:
            entry = _write_file(planned, prepared, staging, _shifted(progress, done, prepared.files.size))
            if prepared.files.index is not None:
                staging.record(entry)
        drifts |= {name: Drift(*sums) for name, sums in entry["drifts"].items()}
        entries.append({key: entry[key] for key in ("file", "size", "checksum")})
        done += planned.size
    return entries, drifts


def _write_file(planned: OutputFile, prepared: Prepared, staging: Staging, progress: Progress | None) -> dict[str, Any]:
    """One weight file; its entry in the journal."""
    writer = staging.open(planned)
    try:
        segments = [(segment, writer) for segment in planned.segments]
        drifts = execute(segments, prepared.workers.count, progress)
        return writer.finish() | {"drifts": {name: (d.base, d.delta, d.changed) for name, d in drifts.items()}}
    finally:
        writer.abandon()


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Progress of one file as progress of all."""
    return (lambda now, _: progress(done + now, total)) if progress is not None else None


def _write_company(
    prepared: Prepared, staging: Staging, drifts: dict[str, Drift], command: Sequence[str]
) -> dict[str, bytes]:
    """The small files; returns those that the manifest vouches for."""
    company = dict(prepared.companions)
    if prepared.files.index is not None:
        company[INDEX] = prepared.files.index
    for name, content in company.items():
        staging.put(name, content)
    config = parse_config(prepared.companions)
    weights = prepared.files.files[0].name
    made = card.make_card(prepared.plan, prepared.base, prepared.finetuned, drifts, config, command, weights)
    staging.put(card.NAME, made)
    return company


def _require_related(
    base: Checkpoint, finetuned: Checkpoint, coverage: float, relation: Relation, force: bool, warnings: list[str]
) -> None:
    problems = []
    if coverage < LEAST_COVERAGE:
        problems.append(f"{finetuned.reference} has only {coverage:.0%} of the parameters of {base.reference}")
    if relation.unrelated:
        problems.append(
            f"{finetuned.reference} is not a fine-tune of {base.reference}: the cosine between their weights is "
            f"{relation.median:.3f} (median of {len(relation.cosines)} sampled tensors; a fine-tune has 0.7 or more)"
        )
    if problems and not force:
        raise MismatchError(
            "; ".join(problems) + ". Check that the base is the one that was fine-tuned; --force merges all the same"
        )
    warnings += [f"{problem}; merged all the same (--force)" for problem in problems]


def _already_done(prepared: Prepared, output: Path) -> MergeResult:
    import json

    document = json.loads((output / manifest.NAME).read_text())
    return MergeResult(output, document, prepared.plan, {}, True, tuple(prepared.warnings))
