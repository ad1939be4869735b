"""Runs a merge from end to end: opens, decides, writes, records, commits. Holds the library's main verbs."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.errors import MismatchError, SpeechFTMergeError, UsageError
from speechft_merge.executor.executor import execute
from speechft_merge.executor.workers import Workers, choose_workers
from speechft_merge.output.files import INDEX
from speechft_merge.output.formats import OutputForm, decide_form
from speechft_merge.output.output import Output
from speechft_merge.output.place import require_place
from speechft_merge.plan.plan import LEAST_COVERAGE, Plan, make_plan
from speechft_merge.plan.relation import Relation, measure_relation
from speechft_merge.recipe import Recipe
from speechft_merge.record import card, manifest
from speechft_merge.record.identity import identify
from speechft_merge.record.manifest import Manifest, OutputEntry, Written, describe_input, make_manifest
from speechft_merge.sources.reference import HubReference, list_references, parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.executor.drift import Drift
    from speechft_merge.executor.executor import Progress
    from speechft_merge.output.files import OutputFile, OutputFiles
    from speechft_merge.output.writer import FileWriter
    from speechft_merge.push import PushTarget
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest
    from speechft_merge.sources.reference import Reference


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How a merge is done; the recipe says what is mixed."""

    overwrite: bool = False
    """Replace an output that already exists."""
    allow_unrelated: bool = False
    """Merge even if the models seem unrelated, or if the fine-tune covers little of the base."""
    download: bool = False
    """Download models from the Hub to huggingface_hub's cache first, instead of reading ranges."""
    workers: int | None = None
    """Threads that work at once; None to choose."""
    fsync: bool = True
    """Wait until the output is on the disk."""
    max_shard_size: int | None = None
    """Most bytes of a weights file; None for a single file."""
    command: tuple[str, ...] = ()
    """The command line, for the manifest and the model card."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge wrote and measured."""

    output: Path
    manifest: Manifest
    drifts: Mapping[str, Drift]
    """Output name -> drift of each interpolated tensor; empty if the merge was already done."""
    already_done: bool = False
    warnings: tuple[str, ...] = ()


class Merge:
    """Open models and the plan for every tensor in them; see `open_merge`. A context manager."""

    def __init__(
        self, models: Sequence[Checkpoint], plan: Plan, options: MergeOptions, resources: ExitStack | None = None
    ) -> None:
        self.base = models[0]
        self.finetuned = tuple(models[1:])
        self.options = options
        self._planned = plan
        self._resources = resources or ExitStack()

    def __enter__(self) -> Merge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the models."""
        self._resources.close()

    @property
    def models(self) -> tuple[Checkpoint, ...]:
        """Base and fine-tunes."""
        return self.base, *self.finetuned

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """How close each fine-tune is to the base, measured on a sample of the weights."""
        return tuple(measure_relation(self._planned, which) for which in range(len(self.finetuned)))

    @cached_property
    def _form(self) -> OutputForm:
        return decide_form(self._planned, self.base, self.finetuned[0], self.options.max_shard_size)

    @property
    def plan(self) -> Plan:
        """What becomes of each tensor, under the names of the output."""
        return self._form.plan

    @property
    def files(self) -> OutputFiles:
        """The weight files of the output, to the byte."""
        return self._form.files

    @property
    def companions(self) -> dict[str, bytes]:
        """Name -> content of the small files beside the weights."""
        return self._form.companions

    @property
    def workers(self) -> Workers:
        """The number of threads, and the reason for it."""
        return choose_workers(self.files.size, self.options.workers, self.plan.converts)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Evidence against merging these models.

        Raises:
            MismatchError: there is some, and `allow_unrelated` is not set.
        """
        found = [problem for which in range(len(self.finetuned)) for problem in self._problems(which)]
        if found and not self.options.allow_unrelated:
            raise MismatchError(
                "; ".join(found),
                hint="check that the base is the one that was fine-tuned; pass --allow-unrelated to merge anyway",
            )
        return tuple(f"{problem}; merged anyway (--allow-unrelated)" for problem in found)

    def _problems(self, which: int) -> list[str]:
        base, finetuned = self.base.reference, self.finetuned[which].reference
        coverage, relation = self._planned.coverages[which], self.relations[which]
        problems = []
        if coverage < LEAST_COVERAGE:
            problems.append(f"{finetuned} has only {coverage:.0%} of the parameters of {base}")
        if relation.unrelated:
            problems.append(
                f"{finetuned} is not a fine-tune of {base}: the cosine between their weights is {relation.median:.3f} "
                f"(median of {len(relation.cosines)} sampled tensors; a fine-tune has 0.7 or more)"
            )
        return problems

    def write(self, output: str | Path, progress: Progress | None = None) -> MergeResult:
        """Write the merged model's directory, whole or not at all.

        Args:
            output: the directory.
            progress: called from time to time with the bytes done and the total.

        Raises:
            OutputError, WriteError: the output already exists, or cannot be written.
            MismatchError: an input holds numbers that are not finite, or a result does not fit its type.
        """
        path = require_place(output, [model.reference for model in self.models])
        inputs = [describe_input(model) for model in self.models]
        identity = identify(self.plan.recipe, inputs, self.files.digest, self.companions)
        with Output(path, identity, overwrite=self.options.overwrite, fsync=self.options.fsync) as place:
            earlier = place.finished()
            if earlier is None:
                try:
                    place.begin(self.files)
                    written = self._write_weights(place, progress)
                    made = make_manifest(self.plan, identity, inputs, written, self.options.command)
                    place.put({**written.companions, card.NAME: self._card(written.drifts)})
                    place.put({manifest.NAME: made.encode()})
                    place.commit()
                    return MergeResult(path, made, written.drifts, False, self._warnings_after(written.drifts))
                except Exception:  # an equal merge may have been faster
                    earlier = place.finished()
                    if earlier is None:
                        raise
            return MergeResult(path, earlier, {}, True, self.warnings)

    def _write_weights(self, output: Output, progress: Progress | None) -> Written:
        entries: list[OutputEntry] = []
        drifts: dict[str, Drift] = {}
        done = 0
        for planned in self.files.files:
            told = _shifted(progress, done, self.files.size)
            made = output.write_file(planned, partial(self._fill, planned, told), self.files.index is not None)
            entries.append(made.entry)
            drifts |= made.drifts
            done += planned.size
        index = {} if self.files.index is None else {INDEX: self.files.index}
        return Written(tuple(entries), self.companions | index, drifts)

    def _fill(self, planned: OutputFile, progress: Progress | None, writer: FileWriter) -> dict[str, Drift]:
        segments = [(segment, writer) for segment in planned.segments]
        return execute(segments, self.workers.count, progress)

    def _card(self, drifts: Mapping[str, Drift]) -> bytes:
        config, weights = self._form.config, self.files.files[0].name
        return card.make_card(self.plan, self.base, self.finetuned, dict(drifts), config, self.options.command, weights)

    def _warnings_after(self, drifts: Mapping[str, Drift]) -> tuple[str, ...]:
        if not drifts or any(drift.changed for drift in drifts.values()):
            return self.warnings
        told = "the fine-tune does not differ from the base anywhere: was its encoder frozen? The merge is the base"
        return (*self.warnings, told)

    def compare(
        self, request: ProbeRequest | None = None, result: MergeResult | None = None, progress: Progress | None = None
    ) -> Report:
        """Compare the features of base, fine-tune and merge on a probe, layer by layer.

        Args:
            request: the probe, the estimator, the device.
            result: what `write` returned: its output is compared and gets the report; None to merge in memory.
            progress: called with the clips done and the total.

        Raises:
            NotFoundError, CheckpointError: a model or the probe cannot be read, or not run.
            MismatchError: the models give features that are not finite.
            UsageError: a package is missing.
        """
        from speechft_merge.similarity.attach import attach
        from speechft_merge.similarity.comparison import compare_models
        from speechft_merge.similarity.models import ComparedModels

        if result is None:
            return compare_models(ComparedModels(self.base, self.finetuned, self._planned), request, progress)
        with open_checkpoint(str(result.output)) as merged:
            models = ComparedModels(self.base, self.finetuned, self.plan, merged, result.drifts)
            report = compare_models(models, request, progress)
        names = {"base": _pinned(self.base), "finetuned": _pinned(self.finetuned[0])}
        return attach(result.output, replace(report, models=report.models | names))

    def push(self, result: MergeResult, target: PushTarget, message: str | None = None, *, keep: bool = True) -> str:
        """Commit the output of `write` to the Hub; return the URL of the commit, or of the pull request.

        Args:
            result: what `write` returned.
            target: what `push.prepare_push` returned; call that before the merge begins.
            message: first line of the commit.
            keep: whether the local output stays; one that existed before always does.

        Raises:
            HubError, TemporaryError: refused, or the Hub failed; the output stays, and a note says how to push it.
        """
        from speechft_merge.push import push, push_command

        try:
            url = push(result.output, target, message)
        except SpeechFTMergeError as error:
            here = Path.cwd()
            place = result.output.relative_to(here) if result.output.is_relative_to(here) else result.output
            error.add_note(f"the merged model is in {place}; push it with: {push_command(place, target, message)}")
            raise
        if not keep and not result.already_done:
            shutil.rmtree(result.output, ignore_errors=True)
        return url


def open_merge(
    base: Reference,
    finetuned: Reference | Sequence[Reference],
    recipe: Recipe | None = None,
    options: MergeOptions | None = None,
) -> Merge:
    """Open the models, decide on every tensor, and check that the models belong together; nothing is written.

    Args:
        base: the pre-trained model: a directory, a file, or `org/name[@revision][:path]` on the Hub.
        finetuned: a fine-tune of it, or several.
        recipe: what is mixed; by default everything with Speech-FT's alpha of 0.25.
        options: how the work is done.

    Raises:
        NotFoundError, CheckpointError: see `checkpoints.open_checkpoint`.
        MismatchError, UsageError: see `plan.make_plan`; or the models are not related.
        HubError, TemporaryError: see `sources.hub_errors`.

    Example:
        >>> from speechft_merge import open_merge
        >>> with open_merge("examples/pair/base", "examples/pair/finetuned") as merge:
        ...     merge.plan.counts["interpolated"]
        115
    """
    merge = _open(base, finetuned, recipe or Recipe(), options or MergeOptions())
    try:
        _ = merge.warnings, merge.files, merge.companions, merge.workers
    except BaseException:
        merge.close()
        raise
    return merge


def _open(base: Reference, finetuned: Reference | Sequence[Reference], recipe: Recipe, options: MergeOptions) -> Merge:
    references = list_references(base, finetuned)
    if len(references) < 2:
        raise UsageError("a fine-tuned model is missing", hint="give the base first, then one or more fine-tunes of it")
    with ExitStack() as stack:
        models = [stack.enter_context(open_checkpoint(reference, options.download)) for reference in references]
        plan = make_plan(models[0], models[1:], recipe)
        return Merge(models, plan, options, stack.pop_all())


def merge(
    base: Reference, finetuned: Reference | Sequence[Reference], output: str | Path, recipe: Recipe | None = None, *,
    alpha: float | None = None, options: MergeOptions | None = None, progress: Progress | None = None,
) -> MergeResult:  # fmt: skip
    """Merge models into a model directory; see `open_merge` and `Merge.write` for arguments and errors.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        output: the directory to make.
        recipe: what is mixed.
        alpha: short for `Recipe(alpha=alpha)`.
        options: how the work is done.
        progress: called from time to time with the bytes done and the total.

    Example:
        >>> from speechft_merge import merge
        >>> from tempfile import mkdtemp
        >>> output = mkdtemp() + "/merged"
        >>> merge("examples/pair/base", "examples/pair/finetuned", output, alpha=0.4).manifest.counts["interpolated"]
        115
    """
    if alpha is not None:
        if recipe is not None:
            raise UsageError("both alpha and a recipe are given", hint="give one of them")
        recipe = Recipe(alpha=alpha)
    require_place(output, list_references(base, finetuned))
    with open_merge(base, finetuned, recipe, options) as opened:
        return opened.write(output, progress)


def compare(
    base: Reference, finetuned: Reference | Sequence[Reference], merged: Reference | None = None,
    request: ProbeRequest | None = None, *, recipe: Recipe | None = None, options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> Report:  # fmt: skip
    """Compare the features of a base, a fine-tune and their merge on a probe, layer by layer. Nothing is written.

    Args:
        base: the pre-trained model, see `open_merge`.
        finetuned: the fine-tune; of several, the first is compared, and all are merged.
        merged: a merged model; None to interpolate in memory by `recipe`.
        request: the probe, the estimator, the device.
        recipe: what is mixed in memory.
        options: only `download` matters.
        progress: called with the clips done and the total.

    Raises:
        NotFoundError, CheckpointError, HubError, TemporaryError: a model or the probe cannot be read, or not run.
        MismatchError: the models do not fit each other, or give features that are not finite.
        UsageError: the recipe does not fit, or a package is missing.

    Example:
        >>> from speechft_merge import ProbeRequest, compare
        >>> report = compare("examples/pair/base", "examples/pair/finetuned", request=ProbeRequest(seconds=10))
        >>> [layer.key.label for layer in report.layers]
        ['input', '0', '1', '2', '3', '4', '5']
    """
    from speechft_merge.similarity.comparison import compare_models
    from speechft_merge.similarity.models import ComparedModels

    with ExitStack() as stack:
        opened = stack.enter_context(_open(base, finetuned, recipe or Recipe(), options or MergeOptions()))
        made = None if merged is None else stack.enter_context(open_checkpoint(merged, opened.options.download))
        models = ComparedModels(opened.base, opened.finetuned, opened._planned, made)
        return compare_models(models, request, progress)


def _pinned(checkpoint: Checkpoint) -> str:
    """Return the reference of a checkpoint, on the Hub with the commit that was opened: a branch may move."""
    found = parse_reference(checkpoint.reference) if checkpoint.hub is not None else None
    if checkpoint.hub is None or not isinstance(found, HubReference):
        return checkpoint.reference
    return str(replace(found, revision=checkpoint.hub.commit))


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Turn the progress of one file into that of all files."""
    return (lambda now, _: progress(done + now, total)) if progress is not None else None
