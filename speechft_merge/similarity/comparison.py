"""The comparison from end to end: open the models, run them on a probe, measure every layer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import torch

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.checkpoints.companions import FEATURE_EXTRACTOR
from speechft_merge.checkpoints.model_config import ModelConfig, read_model_config
from speechft_merge.errors import CheckpointError, MismatchError
from speechft_merge.layouts.naming import TRANSFORMERS
from speechft_merge.layouts.structure import is_decoder, locate
from speechft_merge.plan.operations import Copy
from speechft_merge.plan.plan import Action, PlannedTensor, make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.similarity.cka import LEAST_UTTERANCES
from speechft_merge.similarity.encoders import WHISPER, build_encoder, choose_device, exact_products, load_weights
from speechft_merge.similarity.inputs import InputMaker, settings_differ
from speechft_merge.similarity.measure import measure, measure_grid, measure_kept, measure_null
from speechft_merge.similarity.probe import Probe, read_probe
from speechft_merge.similarity.report import PAIRS, Report, make_report
from speechft_merge.similarity.request import ProbeRequest
from speechft_merge.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.similarity.encoders import Encoder
    from speechft_merge.similarity.inputs import Batch
    from speechft_merge.similarity.measure import Utterance

FEW_UTTERANCES = 20
"""Below it the standard error is itself uncertain by a sixth or more."""
ROLES = ("base", "finetuned", "merged")

Progress = Callable[[int, int], None]
"""Called with clips done and clips in all."""


@dataclass(slots=True)
class _Models:
    """What is compared, opened: the weights are read later."""

    checkpoints: list[Checkpoint]
    sources: list[_Source]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model's weights come from, and what they are called in transformers' encoder."""

    reference: str
    config: dict[str, Any]
    extractor: dict[str, Any]
    """The settings of its feature extractor; empty where there are none."""
    tensors: list[PlannedTensor]
    names: dict[str, str]


def compare(
    base: str, finetuned: str | Sequence[str], merged: str | None = None, request: ProbeRequest | None = None, *,
    recipe: Recipe | None = None, download: bool = False, progress: Progress | None = None,
) -> Report:  # fmt: skip
    """Compare the features of a base, a fine-tune and their merge on a probe, layer by layer. Nothing is written.

    Args:
        base: the pre-trained model, see `merging.prepare`.
        finetuned: the fine-tune; of several, the first is compared, and all are merged.
        merged: a merged model; None to interpolate in memory by `recipe`.
        request: the probe, the estimator, the device.
        recipe: of the merge in memory.
        download: fetch what lies on the Hub into huggingface_hub's cache first.
        progress: called now and then.

    Raises:
        NotFoundError, CheckpointError, HubError, TemporaryError: a model or the probe cannot be read, or not run.
        MismatchError: the models do not fit each other, or give features that are not finite.
        UsageError: the recipe does not fit, or a package is missing.
    """
    request = request or ProbeRequest()
    finetuned = [finetuned] if isinstance(finetuned, str) else list(finetuned)
    device = choose_device(request.device)
    models = _open([base, *finetuned], merged, recipe or Recipe(), download)
    try:
        maker = _make_inputs(models.sources[0], models.sources[1], models.warnings)
        probe = read_probe(request.paths, maker.rate, request.seconds)
        clips = _usable(probe, maker, models.warnings)
        encoders = [build_encoder(source.reference, source.config, _load(source), device) for source in models.sources]
    finally:
        for checkpoint in models.checkpoints:
            checkpoint.close()
    with exact_products():
        return _measure(models, encoders, maker, probe, clips, request, progress)


def _open(references: list[str], merged: str | None, recipe: Recipe, download: bool) -> _Models:
    """Open the models, and make sure that they fit each other."""
    checkpoints = [open_checkpoint(reference, download) for reference in references]
    base, first = checkpoints[0], checkpoints[1]
    plan = make_plan(base, checkpoints[1:], recipe)
    ours, theirs = read_model_config(base), read_model_config(first)
    sources = [_source_of(base, ours, theirs.config), _source_of(first, theirs, ours.config)]
    models = _Models(checkpoints, sources)
    if len(references) > 2:
        models.warnings.append(f"of {len(references) - 1} fine-tunes only the first is compared with base and merge")
    if merged is None:
        owner = sources[1] if recipe.keep_head else sources[0]
        tensors = [tensor for tensor in plan.tensors if tensor.name in owner.names]
        alphas = "alphas by layer" if recipe.layer_alpha else f"alpha {recipe.alpha:g}"
        sources.append(replace(owner, reference=f"merged in memory, {alphas}", tensors=tensors))
    else:
        made = open_checkpoint(merged, download)
        checkpoints.append(made)
        make_plan(base, [made], Recipe())
        sources.append(_source_of(made, read_model_config(made), sources[0].config))
    return models


def _source_of(checkpoint: Checkpoint, model: ModelConfig, other_config: dict[str, Any] | None) -> _Source:
    """By the model's own config; by that of the one beside it, whose encoder is the same, where it has none."""
    config = model.config or other_config
    if not config:
        why = f" ({model.problem})" if checkpoint.naming.layout != TRANSFORMERS else ""
        raise CheckpointError(
            f"{checkpoint.reference}: there is no config.json beside the weights, so the model cannot be run{why}; put "
            "the config.json of its encoder there"
        )
    names = _encoder_names(checkpoint, str(config.get("model_type")))
    known = checkpoint.naming.under()
    tensors = [
        PlannedTensor(name, Action.COPIED, "", known[name].location, span.dtype, span.shape, Copy(span))
        for name, span in checkpoint.tensors.items()
        if name in names
    ]
    return _Source(checkpoint.reference, config, model.extractor or {}, tensors, names)


def _encoder_names(checkpoint: Checkpoint, model_type: str) -> dict[str, str]:
    """Return name in the file -> name in the encoder's class, heads and decoders left out."""
    names = {own: name for own, name in checkpoint.naming.under().items() if not name.is_head}
    if model_type == WHISPER:
        ours = {own: name.canonical for own, name in names.items() if not is_decoder(name.location.stack)}
        return {own: inner.removeprefix("encoder.") for own, inner in ours.items()}
    return {own: name.canonical for own, name in names.items()}


def _load(source: _Source) -> dict[str, Tensor]:
    return {source.names[name]: values for name, values in load_weights(source.tensors).items()}


def _make_inputs(base: _Source, finetuned: _Source, warnings: list[str]) -> InputMaker:
    """By the base's own settings."""
    if not base.extractor:
        warnings.append(
            f"the base has no {FEATURE_EXTRACTOR}; "
            + ("the fine-tune's is taken" if finetuned.extractor else "its family's defaults are taken")
        )
    differing = settings_differ(base.extractor, finetuned.extractor)
    if differing:
        warnings.append(
            f"base and fine-tune differ in {', '.join(differing)} of their {FEATURE_EXTRACTOR}; the base's are taken"
        )
    return InputMaker(base.config, base.extractor or finetuned.extractor)


def _usable(probe: Probe, maker: InputMaker, warnings: list[str]) -> list[Any]:
    """The clips that are long enough for a frame.

    Raises:
        CheckpointError: too few of them.
    """
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
            f"the probe has {len(clips)} usable utterances; at least {LEAST_UTTERANCES} are needed, better "
            f"{FEW_UTTERANCES} or more (--probe, --probe-seconds)"
        )
    if len(clips) < FEW_UTTERANCES:
        warnings.append(
            f"the probe has {len(clips)} utterances; with fewer than {FEW_UTTERANCES} the figures are rough"
        )
    if maker.longest is not None and any(len(clip) > maker.longest for clip in clips):
        warnings.append(f"clips longer than the model's window of {maker.longest / maker.rate:g} s are cut to it")
    return clips


def _measure(
    models: _Models, encoders: list[Encoder], maker: InputMaker, probe: Probe, clips: list[Any], request: ProbeRequest,
    progress: Progress | None,
) -> Report:  # fmt: skip
    _require_repeatable(encoders[0], next(iter(maker.batches(clips[:1]))))
    frames = sum(maker.frames_of(len(clip)) for clip in clips)
    seconds = dict.fromkeys((*ROLES, "statistics"), 0.0)
    began = time.perf_counter()
    utterances = _features(encoders, maker.batches(clips), len(clips), seconds, progress)
    first = next(utterances)
    nulls: list[float] = []
    grids: dict[str, list[list[float]]] = {}
    if _bytes_per_frame(first) * frames <= request.memory:
        layers = [list(layer) for layer in zip(first, *utterances, strict=True)]
        results = measure_kept(layers, request.estimator)
        nulls = measure_null(layers, request.estimator) if request.null else []
        wanted = ("base_finetuned", "base_merged") if request.grid else ()
        grids = {name: measure_grid(layers, PAIRS[name], request.estimator) for name in wanted}
    else:
        models.warnings.append(
            f"the features of {frames} frames do not fit into {request.memory / 1e6:.0f} MB: no standard errors, floor "
            "or grid (nothing is drawn for --heatmap); give fewer --probe-seconds or more --memory"
        )
        results = measure(itertools.chain([first], utterances), request.estimator)
    seconds["statistics"] = time.perf_counter() - began - sum(seconds.values())
    return make_report(
        results, _drifts(encoders[0], encoders[1]), nulls,
        models=dict(zip(ROLES, (source.reference for source in models.sources), strict=False)), probe=probe.describe(),
        estimator=request.estimator, utterances=len(clips), frames=frames, grids=grids,
        warnings=tuple(models.warnings), versions=_versions(), seconds=seconds,
    )  # fmt: skip


def _require_repeatable(encoder: Encoder, batch: Batch) -> None:
    """The same weights must read exactly 1: run twice, the base gives the same bits.

    Raises:
        MismatchError: it does not, and no figure could be trusted.
    """
    pairs = zip(encoder.run(batch)[0], encoder.run(batch)[0], strict=True)
    if not all(torch.equal(once, again) for once, again in pairs):
        raise MismatchError(
            f"{encoder.name} gives other features each time it is run, so equal weights would not read 1; "
            "try --device cpu"
        )


def _features(
    encoders: list[Encoder], batches: Iterable[Batch], total: int, seconds: dict[str, float], progress: Progress | None
) -> Iterator[list[Utterance]]:
    """Of each clip, layer by layer, the features of all encoders."""
    done = 0
    for batch in batches:
        found = []
        for role, encoder in zip(ROLES, encoders, strict=False):
            began = time.perf_counter()
            found.append(encoder.run(batch))
            seconds[role] += time.perf_counter() - began
        for clips in zip(*found, strict=True):
            depths = [len(layers) for layers in clips]
            if len({*depths}) > 1:
                told = ", ".join(f"{role} {depth}" for role, depth in zip(ROLES, depths, strict=False))
                raise MismatchError(
                    f"the models differ in depth ({told} layers): there is no layer-by-layer comparison"
                )
            yield [list(sides) for sides in zip(*clips, strict=True)]
            done += 1
            if progress is not None:
                progress(done, total)


def _bytes_per_frame(utterance: list[Utterance]) -> float:
    """Of the features of all layers and models, as they are kept."""
    return sum(features.numel() * 4 / len(features) for layer in utterance for features in layer)


def _drifts(base: Encoder, finetuned: Encoder) -> dict[int, float]:
    """||finetuned - base|| / ||base|| of the weights that each layer adds; layer 0 has all before the blocks."""
    sums: dict[int, list[float]] = {}
    places = locate({name: tuple(values.shape) for name, values in base.weights.items()})
    theirs = finetuned.weights
    for name, ours in base.weights.items():
        if name in theirs and ours.is_floating_point() and ours.shape == theirs[name].shape:
            place = places[name]
            last = place.part == "final_norm"
            layer = -1 if last else 0 if place.block is None else place.block + 1
            found = sums.setdefault(layer, [0.0, 0.0])
            found[0] += float(ours.double().square().sum())
            found[1] += float((theirs[name].double() - ours.double()).square().sum())
    after = sums.pop(-1, [0.0, 0.0])
    last_layer = sums.setdefault(max(sums, default=0), [0.0, 0.0])
    last_layer[0] += after[0]
    last_layer[1] += after[1]
    return {layer: math.sqrt(delta / square) for layer, (square, delta) in sorted(sums.items()) if square}


def _versions() -> dict[str, str]:
    import transformers

    return {"speechft_merge": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
