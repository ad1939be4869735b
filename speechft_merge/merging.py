"""Runs a merge from end to end: opens, decides, writes, records, commits. Holds the library's main verbs."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.arguments import or_default, path_of
from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.checkpoints.distinct import require_distinct
from speechft_merge.checkpoints.verification import verify
from speechft_merge.display import Told, in_words, layer_parts
from speechft_merge.errors import OutputError, SpeechFTMergeError, UsageError
from speechft_merge.executor.device import Device, choose_device, require_float64
from speechft_merge.executor.drift import Drift
from speechft_merge.executor.executor import execute
from speechft_merge.executor.kept import Kept
from speechft_merge.executor.workers import Workers, choose_workers
from speechft_merge.layouts.structure import blocks_of
from speechft_merge.options import MergeOptions
from speechft_merge.output.formats import decide_form, parse_config
from speechft_merge.output.output import Output, has_digest, keep
from speechft_merge.output.path import require_modest, require_path
from speechft_merge.output.replay import Difference, replay
from speechft_merge.output.shards import INDEX
from speechft_merge.output.staging import remove_temporary
from speechft_merge.plan.decision import decide
from speechft_merge.plan.findings import Finding, Level, require_sound
from speechft_merge.plan.models import prepare_models
from speechft_merge.plan.plan import Plan
from speechft_merge.progress import Step, counted, silent
from speechft_merge.recipe import Recipe
from speechft_merge.record import card, manifest
from speechft_merge.record.identity import identify
from speechft_merge.record.layers import summarise_layers
from speechft_merge.record.manifest import Manifest, Written, describe_input, make_manifest, read_manifest
from speechft_merge.sources.reference import list_references
from speechft_merge.text import fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from speechft_merge.arguments import PathText
    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.display import Table
    from speechft_merge.executor.executor import Execute
    from speechft_merge.output.files import OutputFiles
    from speechft_merge.plan.relation import Relation
    from speechft_merge.progress import Count, Progress
    from speechft_merge.push import Pushed, PushTarget
    from speechft_merge.record.manifest import InputRecord
    from speechft_merge.similarity.report import Report
    from speechft_merge.similarity.request import ProbeRequest
    from speechft_merge.sources.reference import Reference


@dataclass(frozen=True, slots=True, repr=False)
class MergeResult(Told):
    """What a merge wrote and measured; `merge` and `Merge.write` return it.

    Args:
        output: the directory.
        manifest: what is recorded beside the weights; `manifest.layers` has a row for each layer.
        drifts: output name -> drift of each interpolated tensor; empty if the merge was already done.
        already_done: whether the output was there, complete, of the same inputs and recipe.
        findings: what is worth a line on stderr.
        kept: what was read of the encoders of base and first fine-tune, if that was asked for.
    """

    output: Path
    manifest: Manifest
    drifts: Mapping[str, Drift]
    already_done: bool = False
    findings: tuple[Finding, ...] = ()
    kept: Kept | None = None

    def __repr__(self) -> str:
        return f"<MergeResult {fit(self.output.name, 40)}: {in_words(self.manifest.counts)}>"

    def parts(self, verbose: int = 0) -> Iterator[Table | str]:
        """Yield the table of layers, and how far the fine-tune lies from the base."""
        if self.already_done:
            yield "already done: the output exists, is complete, and has the same inputs and recipe"
        else:
            yield from layer_parts(self.manifest.layers)
            drift = Drift.relative(self.drifts.values())
            moved = "" if drift is None else f"; in what is interpolated the fine-tune lies {drift:.2%} from the base"
            yield in_words(self.manifest.counts) + moved


@dataclass(frozen=True, repr=False)
class Merge(Told):
    """Open models and everything that was decided about them; see `open_merge`. A context manager.

    Args:
        base: the pre-trained model.
        finetuned: the fine-tunes.
        plan: what becomes of each tensor, under the names of the output.
        files: the weight files of the output, to the byte.
        companions: name -> content of the small files beside the weights.
        relations: how close each fine-tune is to the base, measured on a sample of the weights.
        device: where it computes, and the reason for it.
        workers: the number of threads, and the reason for it.
        findings: what is to be noted or warned of; a merge that must be refused is not opened.
        options: how the work is done.
    """

    base: Checkpoint
    finetuned: tuple[Checkpoint, ...]
    plan: Plan
    files: OutputFiles
    companions: dict[str, bytes]
    relations: tuple[Relation, ...]
    device: Device
    workers: Workers
    findings: tuple[Finding, ...]
    options: MergeOptions
    _known: tuple[Finding, ...]
    """What was found of the models before any recipe."""
    _resources: ExitStack

    def __repr__(self) -> str:
        models = " + ".join(card.short(model.reference) for model in self.models)
        return f"<Merge of {fit(models, 60)}: {in_words(self.plan.counts)}>"

    def parts(self, verbose: int = 0) -> Iterator[Table | str]:
        """Yield the table of layers, and what would become of the tensors."""
        yield from layer_parts(summarise_layers(self.plan))
        yield in_words(self.plan.counts)

    def __enter__(self) -> Merge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the models."""
        self._resources.close()

    @property
    def models(self) -> tuple[Checkpoint, ...]:
        """Base and fine-tunes."""
        return self.base, *self.finetuned

    @property
    def stacks(self) -> dict[str, list[int]]:
        """Stack -> the indexes of its blocks, for those that are interpolated without being named."""
        names = self.base.naming.under().values()
        return blocks_of(name.location for name in names if not name.location.stays)

    @cached_property
    def inputs(self) -> tuple[InputRecord, ...]:
        """What identifies the models; a little of the weights is read for it."""
        return tuple(map(describe_input, self.models))

    @cached_property
    def identity(self) -> str:
        """What identifies the merge: equal merges have equal ones."""
        prints = [entry.fingerprint for entry in self.inputs]
        return identify(self.plan.recipe, prints, self.files.digest, self.companions)

    def write(
        self,
        output: PathText,
        progress: Progress = silent,
        *,
        temporary: bool = False,
        keep_inputs: bool = False,
    ) -> MergeResult:
        """Write the merged model's directory, whole or not at all.

        Args:
            output: the directory.
            progress: told how far it is.
            temporary: whether `push` removes the output when it is done, unless another merge has found it meanwhile.
            keep_inputs: whether what is read of the encoders stays in memory, so that `compare` need not read it again.

        Raises:
            OutputError, WriteError: the output already exists, or cannot be written.
            MismatchError: an input holds numbers that are not finite, or a result does not fit its type.
        """
        path = require_path(path_of(output, "output"), [model.reference for model in self.models])
        overwrite, fsync = self.options.overwrite, self.options.fsync
        kept = Kept([*self.base.encoder_spans, *self.finetuned[0].encoder_spans]) if keep_inputs else None
        with Output(path, self.identity, overwrite=overwrite, fsync=fsync, temporary=temporary) as target:
            earlier = target.begin(self.files)
            if earlier is None:
                written = self._write_files(target, counted(progress, "merging"), kept)
                findings = self._findings_after(written.drifts)
                made = make_manifest(self.plan, self.identity, self.inputs, written, findings, self.options)
                target.put({manifest.NAME: made.encode()})
                earlier = target.commit()
                if earlier is None:
                    return MergeResult(path, made, written.drifts, False, findings, kept)
            return MergeResult(path, earlier, {}, True, self.findings)

    def at(self, recipe: Recipe) -> Merge:
        """Return the merge of the same open models by another recipe, which differs in alphas or the method.

        Closing either closes the models.

        Raises:
            MismatchError, UsageError: see `open_merge`.
        """
        return _decide([*self.models], self._known, recipe, self.options, self._resources)

    def _execute(self, keep: Kept | None = None) -> Execute:
        return lambda segments, count: execute(segments, self.workers.count, count, self.device.name, keep)

    def _write_files(self, output: Output, count: Count, keep: Kept | None) -> Written:
        """Write weights, companions and card; return what the manifest records of them."""
        weights = output.write_weights(self.files, self._execute(keep), count)
        drifts = {name: drift for found in weights for name, drift in found.drifts.items()}
        companions = self._companions
        config, first = parse_config(self.companions), self.files.files[0].name
        findings = self._findings_after(drifts)
        made = card.make_card(self.plan, self.models, drifts, config, findings, self.options, first)
        output.put({**companions, card.NAME: made})
        return Written(tuple(found.entry for found in weights), companions, drifts)

    def _findings_after(self, drifts: Mapping[str, Drift]) -> tuple[Finding, ...]:
        if not drifts or any(drift.changed for drift in drifts.values()):
            return self.findings
        told = "the fine-tune does not differ from the base anywhere: was its encoder frozen? The merge is the base"
        return (*self.findings, Finding(Level.WARNING, told))

    def replay(self, output: Path, progress: Progress = silent) -> list[Difference]:
        """Carry out the merge again without writing; return where an output differs from it, its card aside.

        Args:
            output: a directory that `write` made.
            progress: told how far it is.

        Raises:
            MismatchError, CheckpointError, TemporaryError: the models cannot be read as before.
        """
        found = replay(output, self.files, self._execute(), counted(progress, "checking"))
        for name, content in self._companions.items():
            if not has_digest(output / name, hashlib.sha256(content).hexdigest()):
                found.append(Difference(name, "it is missing, or differs"))
        return found

    @property
    def _companions(self) -> dict[str, bytes]:
        """The small files, and the index of shards."""
        return self.companions | ({} if self.files.index is None else {INDEX: self.files.index})

    def compare(
        self, request: ProbeRequest | None = None, result: MergeResult | None = None, progress: Progress = silent
    ) -> Report:
        """Compare the features of base, fine-tune and merge on a probe, layer by layer.

        Args:
            request: the probe, the estimator, the device.
            result: what `write` returned: its output is compared and gets the report; None to merge in memory.
            progress: told how far it is.

        Raises:
            NotFoundError, CheckpointError: a model or the probe cannot be read, or not run.
            MismatchError: the models give features that are not finite.
            UsageError: a package is missing.
            OutputError: another process replaced the output.
        """
        progress(Step("importing transformers"))
        from speechft_merge.similarity.beside_output import put_beside
        from speechft_merge.similarity.comparison import compare_models
        from speechft_merge.similarity.models import ComparedModels

        if result is None:
            return compare_models(ComparedModels(self.base, self.finetuned, self.plan), request, progress)
        with open_checkpoint(str(result.output)) as merged:
            measured = None if result.already_done else result.drifts
            models = ComparedModels(self.base, self.finetuned, self.plan, merged, measured, result.kept)
            report = compare_models(models, request, progress)
        names = {"base": self.base.pinned, "finetuned": self.finetuned[0].pinned}
        _require_ours(result)
        return put_beside(result.output, replace(report, models=report.models | names))

    def push(
        self, result: MergeResult, target: PushTarget, message: str | None = None, progress: Progress = silent
    ) -> Pushed:
        """Commit the output of `write` to the Hub; return where it is, and what became of the files that were there.

        Args:
            result: what `write` returned.
            target: what `push.prepare_push` returned; call that before the merge begins.
            message: first line of the commit.
            progress: told how far it is.

        Raises:
            HubError, TemporaryError: refused, or the Hub failed; the output stays, and a note says how to push it.
            OutputError: another process replaced the output.
        """
        from speechft_merge.push import push, push_command

        try:
            pushed = push(result.output, target, message, progress, check=lambda: _require_ours(result))
        except OutputError:
            raise
        except SpeechFTMergeError as error:
            keep(result.output)
            here = Path.cwd()
            path = result.output.relative_to(here) if result.output.is_relative_to(here) else result.output
            error.add_note(f"the merged model is in {path}; push it with: {push_command(path, target, message)}")
            raise
        if not result.already_done:
            remove_temporary(result.output, result.manifest.merge_id)
        return pushed


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
        DeviceError: see `executor.device.choose_device`.
        HubError, TemporaryError: see `sources.hub_errors`.

    Example:
        >>> from speechft_merge import open_merge
        >>> with open_merge("examples/pair/base", "examples/pair/finetuned") as merge:
        ...     merge.plan.counts["interpolated"]
        115
    """
    recipe, options = or_default(recipe, Recipe, "recipe"), or_default(options, MergeOptions, "options")
    choose_device(options.device)  # before anything is read
    with ExitStack() as stack:
        models, chosen = open_models(stack, base, finetuned, recipe, options)
        opened = _decide(models, chosen, recipe, options, stack)
        return replace(opened, _resources=stack.pop_all())


def _decide(
    models: Sequence[Checkpoint], known: Sequence[Finding], recipe: Recipe, options: MergeOptions, resources: ExitStack
) -> Merge:
    """Decide on a merge of open models, which `resources` closes."""
    device = choose_device(options.device)
    plan, relations, findings = decide(models, known, recipe, options.allowed)
    if plan.needs_float64:
        require_float64(device.name)
    form = decide_form(plan, models[0], models[1], options.max_shard_size)
    sources = {id(source): source.size for model in models for source in model.sources}
    require_modest(form.files.size, sum(sources.values()), options.max_output)
    findings += require_sound(form.findings, options.allowed)
    return Merge(
        base=models[0],
        finetuned=tuple(models[1:]),
        plan=form.plan,
        files=form.files,
        companions=form.companions,
        relations=relations,
        device=device,
        workers=choose_workers(form.files.size, options.workers, plan.converts, device.is_cpu),
        findings=findings,
        options=options,
        _known=tuple(known),
        _resources=resources,
    )


def open_models(
    stack: ExitStack, base: Reference, finetuned: Reference | Sequence[Reference], recipe: Recipe, options: MergeOptions
) -> tuple[list[Checkpoint], list[Finding]]:
    """Open base and fine-tunes as they are paired, and return what is found of them; `stack` closes them.

    Raises:
        NotFoundError, CheckpointError, HubError, TemporaryError: one cannot be read.
        MismatchError, UsageError: see `prepare_models`.
    """
    references = list_references(base, finetuned)
    if len(references) < 2:
        raise UsageError("a fine-tuned model is missing", hint="give the base first, then one or more fine-tunes of it")
    download = options.download or options.verify_inputs
    models = [stack.enter_context(open_checkpoint(reference, download)) for reference in references]
    require_distinct(models)
    chosen, findings = prepare_models(models[0], models[1:], recipe)
    unverified = [name for model in models for name in verify(model)] if options.verify_inputs else []
    told = [Finding(Level.NOTE, f"{name} has no checksum that it could be compared with") for name in unverified]
    return chosen, findings + told


def merge(
    base: Reference, finetuned: Reference | Sequence[Reference], output: PathText, recipe: Recipe | None = None, *,
    alpha: float | None = None, options: MergeOptions | None = None, progress: Progress = silent,
) -> MergeResult:  # fmt: skip
    """Merge models into a model directory; see `open_merge` and `Merge.write` for arguments and errors.

    Args:
        base: the pre-trained model.
        finetuned: a fine-tune of it, or several.
        output: the directory to make.
        recipe: what is mixed.
        alpha: short for `Recipe(alpha=alpha)`.
        options: how the work is done.
        progress: told how far it is: `print`, for one.

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
    require_path(path_of(output, "output"), list_references(base, finetuned))
    with open_merge(base, finetuned, recipe, options) as opened:
        return opened.write(output, progress)


def _require_ours(result: MergeResult) -> None:
    """Refuse to speak of an output that is another merge's by now."""
    found = read_manifest(result.output)
    if found is None or found.merge_id != result.manifest.merge_id:
        raise OutputError(f"another process replaced {result.output} after it was complete", hint="run again")
