"""Compares opened models from end to end: runs them on a probe and measures every layer."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

from speechft_merge.arguments import or_default
from speechft_merge.checkpoints.companions import FEATURE_EXTRACTOR
from speechft_merge.errors import CheckpointError, DeviceError, MismatchError, amount
from speechft_merge.executor.device import AUTO, CPU, open_device
from speechft_merge.progress import Count, Progress, Step, counted, silent
from speechft_merge.record.card import short
from speechft_merge.similarity.cka import LEAST_GROUPS
from speechft_merge.similarity.encoders import build_encoder, exact_products
from speechft_merge.similarity.floor import measure_floor
from speechft_merge.similarity.inputs import InputMaker, settings_differ
from speechft_merge.similarity.measure import measure, measure_grid, measure_kept, torch_threads
from speechft_merge.similarity.models import (
    ComparedModels,
    drift_by_layer,
    encoder_sources,
    load_encoder,
    measure_drifts,
    merge_in_memory,
)
from speechft_merge.similarity.probe import Probe, read_probe
from speechft_merge.similarity.report import PAIRS, Report, make_rows, mean_by_pair
from speechft_merge.similarity.request import ProbeRequest
from speechft_merge.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from speechft_merge.executor.drift import Drift
    from speechft_merge.record.layers import LayerKey
    from speechft_merge.similarity.encoders import Encoder
    from speechft_merge.similarity.floor import Floor
    from speechft_merge.similarity.inputs import Batch
    from speechft_merge.similarity.measure import Group, LayerResult
    from speechft_merge.similarity.models import EncoderSource

FEW_GROUPS = 6
"""Below it intervals are far too wide, and with four groups there are none."""
ROLES = ("base", "finetuned", "merged")


def compare_models(models: ComparedModels, request: ProbeRequest | None = None, progress: Progress = silent) -> Report:
    """Compare opened models.

    Args:
        models: base, fine-tune, and the merge or the plan of it.
        request: the probe, the estimator, the device.
        progress: told how far it is.

    Raises:
        NotFoundError, CheckpointError: a model or the probe cannot be read, or not run.
        MismatchError: the models do not fit each other, or give features that are not finite.
        UsageError: a package is missing.
        DeviceError: the device that was asked for cannot be used.
    """
    request = or_default(request, ProbeRequest, "request")
    device = open_device(request.device, float64=True)
    try:
        return _compare(models, request, device, progress)
    except DeviceError:
        if request.device != AUTO:
            raise
        return _compare(models, request, torch.device(CPU), progress)


def _compare(models: ComparedModels, request: ProbeRequest, device: torch.device, progress: Progress) -> Report:
    progress(Step("reading the probe"))
    sources = encoder_sources(models, decoder=request.decoder)
    maker, of_inputs = make_inputs(sources[0], sources[1])
    probe = read_probe(request.files, maker.rate, request.seconds, request.group_by)
    usable = usable_clips(probe, maker)
    encoders, drifts = _build_encoders(models, sources, device, request.decoder, progress)
    with torch_threads(request.workers), exact_products():
        found = _measure(encoders, maker, usable.groups, request, progress)
    return Report(
        models=dict(zip(ROLES, (encoder.name for encoder in encoders), strict=True)),
        probe=probe.record,
        estimator=request.estimator,
        utterances=sum(map(len, usable.groups)),
        groups=len(usable.groups),
        grouped_by=usable.by,
        frames=found.frames,
        layers=make_rows(found.results, drift_by_layer(drifts, encoders[0], found.results), found.floors),
        mean=mean_by_pair(found.results),
        grids=found.grids,
        recipe=models.recipe,
        warnings=(*models.warnings, *of_inputs, *usable.warnings, *found.warnings),
        versions=_versions(),
        seconds=found.seconds,
    )


def _build_encoders(
    models: ComparedModels, sources: Sequence[EncoderSource], device: torch.device, decoder: bool,
    progress: Progress,
) -> tuple[list[Encoder], dict[str, Drift]]:  # fmt: skip
    """Return base, fine-tune and merge, and the drift of each tensor by the names of the encoder's class."""

    def build(source: EncoderSource, weights: dict[str, Tensor]) -> Encoder:
        progress(Step(f"loading {short(source.reference)}"))
        return build_encoder(source.reference, source.config, weights, device, decoder=decoder)

    encoders = [build(source, load_encoder(source, models.kept)) for source in sources]
    known: dict[str, Drift] = {}
    if models.merged is None:
        merged, weights, known = merge_in_memory(models, sources)
        encoders.append(build(merged, weights))
    return encoders, measure_drifts(models, sources[0], known)


def make_inputs(base: EncoderSource, finetuned: EncoderSource) -> tuple[InputMaker, list[str]]:
    """Return what makes inputs by the base's own settings, and warnings."""
    warnings = []
    if not (base.extractor or finetuned.extractor):
        warnings.append(f"neither model has a {FEATURE_EXTRACTOR}; the defaults of the family are taken")
    differing = settings_differ(base.extractor, finetuned.extractor)
    if differing:
        warnings.append(
            f"base and fine-tune differ in {', '.join(differing)} of their {FEATURE_EXTRACTOR}; the base's are taken"
        )
    return InputMaker(base.config, base.extractor or finetuned.extractor), warnings


@dataclass(frozen=True, slots=True)
class UsableClips:
    """The clips of a probe that a model can take, group by group."""

    groups: list[list[NDArray[np.float32]]]
    """Of each group its clips, (samples,)."""
    by: str
    """What told the groups, as `ProbeRecord` has it; `file` or `clip` where each of these is taken as one."""
    warnings: list[str]


def usable_clips(probe: Probe, maker: InputMaker) -> UsableClips:
    """Return the clips that are long enough for a frame, by group.

    If there are too few groups, each file is taken as one; if there are too few files, each clip.

    Raises:
        CheckpointError: there are too few clips, too.
    """
    usable = [place for place, clip in enumerate(probe.clips) if maker.frames_of(len(clip)) > 0]
    warnings = _warnings_of(probe, maker, len(usable))
    if len(usable) < LEAST_GROUPS:
        raise CheckpointError(
            f"the probe's {probe.seconds:.1f} seconds give {amount(len(usable), 'usable clip')}, at "
            f"least {LEAST_GROUPS} are needed",
            found="; ".join(warnings) or None,
            hint="give more audio (--probe), or let more of it be used (--probe-seconds)",
        )
    ways = {probe.grouped_by: probe.groups, "file": probe.files, "clip": range(len(probe.clips))}
    counts = {by: len({of[place] for place in usable}) for by, of in ways.items()}
    by = next(by for by, count in counts.items() if count >= LEAST_GROUPS)
    if by != probe.grouped_by:
        first = counts[probe.grouped_by]
        warnings.append(
            f"the {len(usable)} clips are of {amount(first, 'group')} (by {probe.grouped_by}), at least "
            f"{LEAST_GROUPS} are needed: each {by} is taken as one, and error bars say nothing of other voices"
        )
    if counts[by] < FEW_GROUPS:
        warnings.append(
            f"the probe has {counts[by]} groups (by {by}); with fewer than {FEW_GROUPS} the figures are rough"
            + (", and have no error bars" if counts[by] == LEAST_GROUPS else "")
        )
    groups: dict[object, list[NDArray[np.float32]]] = {}
    for place in usable:
        groups.setdefault(ways[by][place], []).append(probe.clips[place])
    return UsableClips([*groups.values()], by, warnings)


def _warnings_of(probe: Probe, maker: InputMaker, usable: int) -> list[str]:
    warnings = []
    if probe.skipped:
        path, why = next(iter(probe.skipped.items()))
        warnings.append(
            f"files or clips of the probe left out: {len(probe.skipped)} ({PurePath(path).name} {why}"
            + (", ...)" if len(probe.skipped) > 1 else ")")
        )
    if probe.repeated:
        warnings.append(f"clips left out, since another one has the same samples: {probe.repeated}")
    if usable < len(probe.clips):
        warnings.append(f"clips too short for one frame of the model: {len(probe.clips) - usable}")
    if maker.longest is not None and any(len(clip) > maker.longest for clip in probe.clips):
        warnings.append(f"clips longer than the model's window of {maker.longest / maker.rate:g} s are cut to it")
    if maker.counts_padding:
        warnings.append("the model pads every clip to its window, and what it makes of the padding counts, too")
    return warnings


@dataclass(slots=True)
class _Figures:
    """What is measured on the probe."""

    frames: int = 0
    results: dict[LayerKey, LayerResult] = field(default_factory=dict)
    floors: list[Floor] = field(default_factory=list)
    grids: dict[str, list[list[float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))
    """Seconds that each step took."""
    warnings: tuple[str, ...] = ()


def _measure(
    encoders: list[Encoder], maker: InputMaker, groups: list[list[NDArray[np.float32]]], request: ProbeRequest,
    progress: Progress,
) -> _Figures:  # fmt: skip
    keys = _layers_of(encoders[0], encoders[0].with_tokens(next(iter(maker.batches(groups[0][:1])))))
    figures, expected = _Figures(), sum(maker.frames_of(len(clip)) for group in groups for clip in group)
    began = time.perf_counter()
    found = _run_groups(encoders, maker, groups, figures, counted(progress, "running the models", "clips"))
    first = next(found)
    found = itertools.chain([first], found)
    if _bytes_per_frame(first[0]) * expected <= request.memory:
        lengths: list[list[list[int]]] = []
        joined = []
        for clips in found:
            lengths.append([[len(sides[0]) for sides in clip] for clip in clips])
            joined.append(_join(clips))
        progress(Step("statistics"))
        layers = [list(layer) for layer in zip(*joined, strict=True)]
        results = measure_kept(layers, request.estimator)
        figures.floors = measure_floor(layers, lengths, request.estimator) if request.null else []
        wanted = PAIRS if request.grid else {}
        figures.grids = {name: measure_grid(layers, pair, request.estimator) for name, pair in wanted.items()}
    else:
        results = measure(map(_join, found), request.estimator)
        figures.warnings = (
            f"the features of some {expected} frames do not fit into {request.memory / 1e6:.0f} MB: no standard "
            "errors, floor or grid (nothing is drawn for --heatmap); pass fewer --probe-seconds or more --memory",
        )
    figures.results = dict(zip(keys, results, strict=True))
    figures.seconds["statistics"] = time.perf_counter() - began - sum(figures.seconds.values())
    return figures


def _layers_of(encoder: Encoder, batch: Batch) -> list[LayerKey]:
    """Return the rows that an encoder gives, after checking that equal weights read exactly 1.

    Raises:
        MismatchError: run twice, it does not give the same bits, so no figure could be trusted.
    """
    once, again = encoder.run(batch)[0], encoder.run(batch)[0]
    if not all(torch.equal(state, again[key]) for key, state in once.items()):
        raise MismatchError(
            f"{encoder.name} gives other features each time it is run, so equal weights would not read 1",
            hint="pass --device cpu",
        )
    return [*once]


def _run_groups(
    encoders: list[Encoder], maker: InputMaker, groups: list[list[NDArray[np.float32]]], figures: _Figures,
    count: Count,
) -> Iterator[list[list[Group]]]:  # fmt: skip
    """Yield the features of all encoders, group by group: of each its clips, of these their layers."""
    done, total = 0, sum(map(len, groups))
    for group in groups:
        found = []
        for clip in _run(encoders, map(encoders[0].with_tokens, maker.batches(group)), figures):
            found.append(clip)
            done += 1
            count(done, total)
        yield found


def _run(encoders: list[Encoder], batches: Iterable[Batch], figures: _Figures) -> Iterator[list[Group]]:
    """Yield the features of all encoders, clip by clip: of each, layer by layer. Count frames and seconds."""
    for batch in batches:
        found = []
        for role, encoder in zip(ROLES, encoders, strict=True):
            began = time.perf_counter()
            found.append(encoder.run(batch))
            figures.seconds[role] += time.perf_counter() - began
        for clip in zip(*found, strict=True):
            _require_same_layers(clip)
            figures.frames += len(next(iter(clip[0].values())))
            yield [list(sides) for sides in zip(*(states.values() for states in clip), strict=True)]


def _join(clips: list[list[Group]]) -> list[Group]:
    """Return the features of a group, layer by layer, from those of its clips."""
    return [[torch.cat(states) for states in zip(*layer, strict=True)] for layer in zip(*clips, strict=True)]


def _require_same_layers(clip: Sequence[dict[LayerKey, Tensor]]) -> None:
    if any(states.keys() != clip[0].keys() for states in clip):
        told = ", ".join(
            f"{role} ends in layer {[*states][-1].label}" for role, states in zip(ROLES, clip, strict=False)
        )
        raise MismatchError(f"the models differ in depth ({told}): there is no layer-by-layer comparison")


def _bytes_per_frame(clip: list[Group]) -> float:
    return sum(features.numel() * 4 / len(features) for layer in clip for features in layer)


def _versions() -> dict[str, str]:
    import transformers

    return {"speechft_merge": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
