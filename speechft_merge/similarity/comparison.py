"""Compares opened models from end to end: runs them on a probe and measures every layer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

from speechft_merge.checkpoints.companions import FEATURE_EXTRACTOR
from speechft_merge.errors import CheckpointError, DeviceError, MismatchError
from speechft_merge.executor.device import AUTO, CPU, open_device
from speechft_merge.similarity.cka import LEAST_UTTERANCES
from speechft_merge.similarity.encoders import build_encoder, exact_products
from speechft_merge.similarity.inputs import InputMaker, settings_differ
from speechft_merge.similarity.measure import measure, measure_grid, measure_kept, measure_null, torch_threads
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
    from speechft_merge.similarity.inputs import Batch
    from speechft_merge.similarity.measure import LayerResult, Utterance
    from speechft_merge.similarity.models import EncoderSource

FEW_UTTERANCES = 20
"""Below it the standard error is itself uncertain by a sixth or more."""
ROLES = ("base", "finetuned", "merged")

Progress = Callable[[int, int], None]
"""Called with the clips done and the total."""


def compare_models(
    models: ComparedModels, request: ProbeRequest | None = None, progress: Progress | None = None
) -> Report:
    """Compare opened models.

    Args:
        models: base, fine-tune, and the merge or the plan of it.
        request: the probe, the estimator, the device.
        progress: called after each clip.

    Raises:
        NotFoundError, CheckpointError: a model or the probe cannot be read, or not run.
        MismatchError: the models do not fit each other, or give features that are not finite.
        UsageError: a package is missing.
        DeviceError: the device that was asked for cannot be used.
    """
    request = request or ProbeRequest()
    device = open_device(request.device, float64=True)
    try:
        return _compare(models, request, device, progress)
    except DeviceError:
        if request.device != AUTO:
            raise
        return _compare(models, request, torch.device(CPU), progress)


def _compare(models: ComparedModels, request: ProbeRequest, device: torch.device, progress: Progress | None) -> Report:
    sources = encoder_sources(models, decoder=request.decoder)
    maker, of_inputs = make_inputs(sources[0], sources[1])
    probe = read_probe(request.paths, maker.rate, request.seconds)
    clips, of_clips = usable_clips(probe, maker)
    encoders, drifts = _build_encoders(models, sources, device, request.decoder)
    with torch_threads(request.workers), exact_products():
        found = _measure(encoders, maker, clips, request, progress)
    return Report(
        models=dict(zip(ROLES, (encoder.name for encoder in encoders), strict=True)),
        probe=probe.record,
        estimator=request.estimator,
        utterances=len(clips),
        frames=found.frames,
        layers=make_rows(found.results, drift_by_layer(drifts, encoders[0], found.results), found.nulls),
        mean=mean_by_pair(found.results),
        grids=found.grids,
        warnings=(*models.warnings, *of_inputs, *of_clips, *found.warnings),
        versions=_versions(),
        seconds=found.seconds,
    )


def _build_encoders(
    models: ComparedModels, sources: Sequence[EncoderSource], device: torch.device, decoder: bool
) -> tuple[list[Encoder], dict[str, Drift]]:
    """Return base, fine-tune and merge, and the drift of each tensor by the names of the encoder's class."""

    def build(source: EncoderSource, weights: dict[str, Tensor]) -> Encoder:
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


def usable_clips(probe: Probe, maker: InputMaker) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Return the clips that are long enough for a frame, and warnings.

    Raises:
        CheckpointError: there are too few.
    """
    warnings = []
    if probe.skipped:
        path, why = next(iter(probe.skipped.items()))
        warnings.append(
            f"{len(probe.skipped)} files of the probe are not used: {PurePath(path).name} {why}"
            + (", ..." if len(probe.skipped) > 1 else "")
        )
    clips = [clip for clip in probe.clips if maker.frames_of(len(clip)) > 0]
    if len(clips) < len(probe.clips):
        warnings.append(f"{len(probe.clips) - len(clips)} clips are too short for one frame of the model")
    if len(clips) < LEAST_UTTERANCES:
        raise CheckpointError(
            f"the probe has {len(clips)} usable utterances, at least {LEAST_UTTERANCES} are needed",
            hint=f"give {FEW_UTTERANCES} or more (--probe, --probe-seconds)",
        )
    if len(clips) < FEW_UTTERANCES:
        warnings.append(
            f"the probe has {len(clips)} utterances; with fewer than {FEW_UTTERANCES} the figures are rough"
        )
    if maker.longest is not None and any(len(clip) > maker.longest for clip in clips):
        warnings.append(f"clips longer than the model's window of {maker.longest / maker.rate:g} s are cut to it")
    if maker.counts_padding:
        warnings.append("the model pads every clip to its window, and what it makes of the padding counts, too")
    return clips, warnings


@dataclass(slots=True)
class _Figures:
    """What is measured on the probe."""

    frames: int = 0
    results: dict[LayerKey, LayerResult] = field(default_factory=dict)
    nulls: list[float] = field(default_factory=list)
    grids: dict[str, list[list[float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))
    """Seconds that each step took."""
    warnings: tuple[str, ...] = ()


def _measure(
    encoders: list[Encoder], maker: InputMaker, clips: list[NDArray[np.float32]], request: ProbeRequest,
    progress: Progress | None,
) -> _Figures:  # fmt: skip
    keys = _layers_of(encoders[0], encoders[0].with_tokens(next(iter(maker.batches(clips[:1])))))
    figures, expected = _Figures(), sum(maker.frames_of(len(clip)) for clip in clips)
    began = time.perf_counter()
    batches = map(encoders[0].with_tokens, maker.batches(clips))
    utterances = _reporting(_run(encoders, batches, figures), len(clips), progress)
    first = next(utterances)
    if _bytes_per_frame(first) * expected <= request.memory:
        layers = [list(layer) for layer in zip(first, *utterances, strict=True)]
        results = measure_kept(layers, request.estimator)
        figures.nulls = measure_null(layers, request.estimator) if request.null else []
        wanted = ("base_finetuned", "base_merged") if request.grid else ()
        figures.grids = {name: measure_grid(layers, PAIRS[name], request.estimator) for name in wanted}
    else:
        results = measure(itertools.chain([first], utterances), request.estimator)
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


def _run(encoders: list[Encoder], batches: Iterable[Batch], figures: _Figures) -> Iterator[list[Utterance]]:
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


def _reporting(
    utterances: Iterator[list[Utterance]], total: int, progress: Progress | None
) -> Iterator[list[Utterance]]:
    for done, utterance in enumerate(utterances, 1):
        yield utterance
        if progress is not None:
            progress(done, total)


def _require_same_layers(clip: Sequence[dict[LayerKey, Tensor]]) -> None:
    if any(states.keys() != clip[0].keys() for states in clip):
        told = ", ".join(
            f"{role} ends in layer {[*states][-1].label}" for role, states in zip(ROLES, clip, strict=False)
        )
        raise MismatchError(f"the models differ in depth ({told}): there is no layer-by-layer comparison")


def _bytes_per_frame(utterance: list[Utterance]) -> float:
    return sum(features.numel() * 4 / len(features) for layer in utterance for features in layer)


def _versions() -> dict[str, str]:
    import transformers

    return {"speechft_merge": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
