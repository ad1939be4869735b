"""Measures the cells of a sweep: each is made live, compared with base and fine-tune on a probe, and scored."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechft_merge.arguments import PathText, require_fields
from speechft_merge.background import undone_if_left
from speechft_merge.errors import UsageError
from speechft_merge.executor.device import open_device
from speechft_merge.executor.executor import execute
from speechft_merge.live import live_encoder, live_model, load_processor
from speechft_merge.output.folder import explained
from speechft_merge.plan.plan import Action, make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.scoring.scorer import Scorer
from speechft_merge.similarity.comparison import make_inputs, usable_clips
from speechft_merge.similarity.measure import measure_against, summarise
from speechft_merge.similarity.models import ComparedModels, drift_by_layer, encoder_names, encoder_sources
from speechft_merge.similarity.probe import find_recordings, read_probe
from speechft_merge.similarity.request import ProbeRequest
from speechft_merge.sweep.grid import BASE, FINETUNED, Cell, tilted
from speechft_merge.sweep.results import CellResult, LayerFigures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from speechft_merge.executor.drift import Drift
    from speechft_merge.live import LiveModel
    from speechft_merge.merging import Merge
    from speechft_merge.plan.plan import Plan
    from speechft_merge.record.layers import LayerKey
    from speechft_merge.scoring.scores import Score
    from speechft_merge.similarity.encoders import Encoder
    from speechft_merge.similarity.inputs import InputMaker
    from speechft_merge.similarity.measure import Side
    from speechft_merge.similarity.models import EncoderSource

Features = dict["LayerKey", list["Tensor"]]
"""Layer -> the features of each group of clips: (frames, width)."""


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What is swept, and what is measured of each cell.

    Args:
        cells: of the grid, see `grid.lay_out`.
        recipe: what all cells share: weights, method, element type; its alpha does not matter, its rules belong to the
            grid.
        scorers: what scores each cell.
        probe: on what features are compared; None to leave that out. Its device is that of all scores.
        scratch: where models are written that a command scores; None for the system's temporary folder.

    Raises:
        UsageError: a value is invalid.

    Example:
        >>> from speechft_merge import SweepRequest, lay_out
        >>> [cell.label for cell in SweepRequest(lay_out([0.25, 0.5])).cells]
        ['0', '0.25', '0.5', '1']
    """

    cells: Sequence[Cell]
    recipe: Recipe = field(default_factory=Recipe)
    scorers: Sequence[Scorer] = ()
    probe: ProbeRequest | None = field(default_factory=ProbeRequest)
    scratch: PathText | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        if self.recipe.layer_alpha:
            raise UsageError("the recipe of a sweep has rules for layers", hint="give them with the grid's cells")
        if self.probe is not None and self.probe.decoder:
            raise UsageError("a sweep compares encoders only", hint="compare the decoders of the merge that you pick")

    @property
    def description(self) -> dict[str, Any]:
        """What decides about the figures besides the models and the grid, for JSON."""
        return {
            "recipe": replace(self.recipe, alpha=0.0).to_json(),
            "probe": None if self.probe is None else _describe(self.probe),
            "scorers": [scorer.description for scorer in self.scorers],
        }

    def recipe_of(self, cell: Cell, stacks: dict[str, list[int]]) -> Recipe:
        """Return the recipe of a cell.

        Args:
            cell: of the grid.
            stacks: stack -> the indexes of its blocks.
        """
        rules = tuple(map(parse_rule, (*tilted(cell, stacks), *cell.rules)))
        other: dict[str, Any] = {"method": cell.method, "weight": ()} if cell.method else {}
        return replace(self.recipe, alpha=cell.alpha, layer_alpha=rules, **other)


def _describe(probe: ProbeRequest) -> dict[str, Any]:
    recordings, digest = find_recordings(probe.files, probe.group_by)[0], hashlib.sha256()
    for path, group in recordings:
        with path.open("rb") as file:
            digest.update(
                hashlib.file_digest(file, "sha256").digest() + f"{group}\0".encode("utf-8", "surrogateescape")
            )
    origin = "built-in" if probe.files is None else f"{len(recordings)} files"
    return {
        "origin": origin, "sha256": digest.hexdigest(), "seconds": probe.seconds, "estimator": probe.estimator
    }  # fmt: skip


class Bench:
    """What measures cells, one after the other: the live model, the features that it is compared with, the scorers."""

    def __init__(self, opened: Merge, request: SweepRequest) -> None:
        self.opened, self._request = opened, request
        self._models = ComparedModels(opened.base, opened.finetuned, self._plan(FINETUNED))
        self.notes: list[str] = []
        """What is found of the models and the probe."""
        self._measured: dict[str, Mapping[str, Drift]] = {}

    def measure(self, cell: Cell) -> CellResult:
        """Measure one cell.

        Raises:
            SpeechFTMergeError: it cannot be made or scored.
        """
        plan, seconds = self._plan(cell), dict[str, float]()
        references = self._references if self._request.probe is not None else []  # the live model is set to these
        if self._live is not None:
            with _timed(seconds, "setting"):
                self._live.set(plan)
        layers: tuple[LayerFigures, ...] = ()
        if self._request.probe is not None:
            with _timed(seconds, "features"):
                features = self._features()
            with _timed(seconds, "similarity"):
                layers = self._compare(features, references, plan, self._request.probe)
        scores: list[Score] = []
        for scorer in self._request.scorers:
            with _timed(seconds, str(scorer.description["name"])):
                scores += scorer.score(_Candidate(self, plan.recipe))
            if scorer.needs_model:  # a user's function may have changed it
                self.live.set(plan)
        return CellResult(cell, tuple(scores), layers, seconds)

    def _plan(self, cell: Cell) -> Plan:
        return make_plan(self.opened.base, self.opened.finetuned, self._request.recipe_of(cell, self.opened.stacks))

    @cached_property
    def _live(self) -> LiveModel | None:
        """The live model, if anything takes one: with its head, if a scorer needs it."""
        device = open_device(self.opened.options.device, float64=True)
        if any(scorer.needs_model for scorer in self._request.scorers):
            return live_model(self._models, self.opened.companions, device)
        if self._request.probe is not None or not all(scorer.needs_files for scorer in self._request.scorers):
            return live_encoder(self._models, device)
        return None

    @property
    def live(self) -> LiveModel:
        """The live model."""
        assert self._live is not None, "a scorer that takes files alone asked for a live model"
        return self._live

    @cached_property
    def _sources(self) -> list[EncoderSource]:
        return encoder_sources(self._models)

    @cached_property
    def _base_inputs(self) -> InputMaker:
        """What makes the inputs of a comparison, by the base's own settings."""
        maker, notes = make_inputs(*self._sources[:2])
        self.notes += notes
        return maker

    @cached_property
    def inputs(self) -> InputMaker:
        """What makes inputs by the settings of the model that is written."""
        base, finetuned = self._sources[:2]
        if not self._request.recipe.keep_head or base.extractor == finetuned.extractor:
            return self._base_inputs
        return make_inputs(finetuned, base)[0]

    @property
    def scratch(self) -> Path:
        """Where models are written to be scored: beside the job, if the site says where (Alliance Canada's name)."""
        given = self._request.scratch
        return Path(given) if given is not None else Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())

    @cached_property
    def processor(self) -> Any:
        """The tokenizer and feature extractor of the model that is written."""
        return load_processor(self.opened.companions)

    @cached_property
    def _groups(self) -> list[list[NDArray[Any]]]:
        asked = self._request.probe
        assert asked is not None
        probe = read_probe(asked.files, self._base_inputs.rate, asked.seconds, asked.group_by)
        usable = usable_clips(probe, self._base_inputs)
        self.notes += usable.warnings
        return usable.groups

    def _features(self) -> Features:
        """Return the features of the live encoder on the probe, as it is set."""
        found: Features = {}
        for group in self._groups:
            clips = [clip for batch in self._base_inputs.batches(group) for clip in self.live.encoder.run(batch)]
            for key in clips[0]:
                found.setdefault(key, []).append(torch.cat([clip[key] for clip in clips]))
        return found

    @cached_property
    def _references(self) -> list[list[Side]]:
        """The features of base and fine-tune, layer by layer, with their sums."""
        found = []
        for cell in (BASE, FINETUNED):
            self.live.set(self._plan(cell))
            found.append([summarise(groups) for groups in self._features().values()])
        return found

    def _compare(
        self, features: Features, references: Sequence[Sequence[Side]], plan: Plan, probe: ProbeRequest
    ) -> tuple[LayerFigures, ...]:
        figures = measure_against([*features.values()], references, probe.estimator)
        drifts = drift_by_layer(self._drifts_of(plan), self.live.encoder, features)
        found = zip(features, figures, strict=True)
        return tuple(LayerFigures(key, cka[0], cka[1], drifts[key]) for key, cka in found)

    def _drifts(self, method: str) -> Mapping[str, Drift]:
        """Return how far fine-tuning moved each tensor of the encoder, by the plan's names; measured once a method."""
        if method not in self._measured:
            other = method if method != self._request.recipe.method else ""
            plan, names = self._plan(Cell(0.25, method=other)), self._names  # at 1 the base would not be read
            mixed = [tensor for tensor in plan.tensors if tensor.action is Action.INTERPOLATED and tensor.name in names]
            self._measured[method] = execute([(tensor.at(0), None) for tensor in mixed], workers=1)
        return self._measured[method]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        return encoder_names(self._models, self._sources)

    def _drifts_of(self, plan: Plan) -> dict[str, Drift]:
        """Return how far a merge moved each tensor, by the names of the encoder's class: alpha times the whole way."""
        moved: dict[str, Drift] = {}
        drifts = self._drifts(plan.recipe.method)
        for tensor in plan.tensors:
            drift = drifts.get(tensor.name)
            if drift is not None:
                way = (tensor.alpha or 0.0) * drift.ratio
                moved |= dict.fromkeys(self._names[tensor.name], replace(drift, delta=drift.delta * way * way))
        return moved


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A cell, as scorers are given it; the live model is set to it."""

    bench: Bench
    recipe: Recipe

    @property
    def encoder(self) -> Encoder:
        return self.bench.live.encoder

    @property
    def inputs(self) -> InputMaker:
        return self.bench.inputs

    @property
    def model(self) -> Any:
        return self.bench.live.module

    @property
    def processor(self) -> Any:
        return self.bench.processor

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        folder = Path(self.bench.scratch, f"speechft-merge-{secrets.token_hex(6)}")
        with undone_if_left(lambda: _remove(folder)):
            with explained(folder):
                folder.mkdir(mode=0o700, parents=True)
            try:
                self.bench.opened.at(self.recipe).write(folder / "model")
                yield folder / "model"
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a folder that a thread may still be writing to: what it makes meanwhile goes, too."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add to a step's seconds."""
    began = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - began
