"""Scores a model by how well a linear probe, fitted anew on its frozen features, tells classes of clips apart."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError, amount, quote
from speechft_merge.packages import require_packages
from speechft_merge.scoring.answers import parse_name
from speechft_merge.scoring.clips import Clip, Recordings, digest, read_table
from speechft_merge.scoring.folds import assign_folds
from speechft_merge.scoring.ridge import held_out
from speechft_merge.scoring.scores import Better, Score, Unit
from speechft_merge.similarity.audio import LONGEST, seconds_of
from speechft_merge.similarity.probe import SUFFIXES, find_audio
from speechft_merge.similarity.request import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechft_merge.scoring.scorer import Candidate

FEWEST_CLIPS = 10
"""Below it no figure means anything."""


class ProbeTask:
    """Scores accuracy on held-out groups: `NAME` from all layers of the encoder, `NAME.last` from the last alone.

    The features of a clip are the means over its frames. Five folds of whole groups are held out in turn.
    """

    needs_model = False
    needs_files = False

    def __init__(self, name: str, clips: Sequence[Clip]) -> None:
        """Check the clips by their headers.

        Raises:
            CheckpointError: a file is no audio, or there are too few clips, classes or groups.
        """
        self.name = name
        self.names = dict.fromkeys((name, f"{name}.last"), Better.HIGHER)
        _require_enough(name, clips)
        self._recordings = Recordings(clips)
        self._folds = assign_folds([clip.label for clip in clips], [clip.group for clip in clips])
        long = sum(seconds_of(clip.path) > LONGEST for clip in clips)
        told = f"{name} takes the first {LONGEST:g} s of clips that are longer: {long} of {len(clips)}"
        self.notes: Sequence[str] = [told] if long else []

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What decides about the figures."""
        clips = self._recordings.clips
        return {"kind": "probe", "name": self.name, "clips": len(clips), "sha256": digest(clips)}

    def score(self, candidate: Candidate) -> list[Score]:
        """Return the accuracies of a probe on all layers and on the last.

        Raises:
            CheckpointError: a file cannot be used, or the model not be run.
            MismatchError: a feature is not finite.
            DeviceError: the device has not enough memory.
        """
        layers = self._features(candidate)
        labels = [clip.label for clip in self._recordings.clips]
        classes = sorted({*labels})
        targets = (np.array(labels)[:, None] == np.array(classes)).astype(np.float64)
        scores = []
        for name, chosen in zip(self.names, (layers, layers[-1:]), strict=True):
            found = held_out(chosen, targets, self._folds).argmax(1)
            units = tuple(
                Unit(clip.id, clip.group, float(classes[place] == clip.label))
                for clip, place in zip(self._recordings.clips, found, strict=True)
            )
            scores.append(Score.of(name, Better.HIGHER, units))
        return scores

    def _features(self, candidate: Candidate) -> list[NDArray[np.float64]]:
        """Return each layer's features, means over frames: (clips, width)."""
        import torch

        from speechft_merge.similarity.encoders import exact_products

        rows: dict[int, NDArray[np.float64]] = {}
        widths: list[int] = []
        with exact_products():
            for batch, places in self._recordings.batches(candidate.inputs):
                for place, states in zip(places, candidate.encoder.run(batch), strict=True):
                    means = [state.mean(0) for state in states.values()]
                    widths = [len(mean) for mean in means]
                    rows[place] = torch.cat(means).double().cpu().numpy()
        features = np.stack([rows[place] for place in range(len(rows))])
        return np.split(features, np.cumsum(widths)[:-1], axis=1)


def parse_probe_task(text: str) -> ProbeTask:
    """Parse `NAME=PATH` and look at what lies there: a folder with one folder a class, or a table of paths and labels.

    Raises:
        UsageError: it is not of this form, or a package is missing.
        NotFoundError: there is no such folder or table, or a file that it names.
        CheckpointError: see `ProbeTask`, `read_table`.
    """
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(
            f"{quote(text)} is not NAME=PATH", hint="name the task and its audio: --probe-task emotion=data/emotion"
        )
    if ":" in name:
        raise UsageError(f"{quote(name)}: more of an accuracy is always better", hint="give the name alone")
    name, _ = parse_name(name)
    require_packages(*PACKAGES)
    return ProbeTask(name, read_classes(Path(path)) if Path(path).is_dir() else read_table(Path(path), "label"))


def read_classes(folder: Path) -> list[Clip]:
    """Return the clips of a folder of classes: `CLASS/GROUP/.../*.wav`, or `CLASS/*.wav` where each is its own group.

    A group of the same name in several classes is one group: a speaker, say.

    Raises:
        NotFoundError: a class has no audio file.
        CheckpointError: audio files lie beside the classes.
    """
    clips = []
    for inner in sorted(folder.iterdir()):
        if inner.suffix.lower() in SUFFIXES and inner.is_file():
            raise CheckpointError(
                f"{inner} lies in no class", hint=f"put each file of {folder} into a folder that is called as its class"
            )
        for path in find_audio([inner]) if inner.is_dir() and not inner.name.startswith(".") else []:
            place = path.relative_to(folder)
            group = place.parts[1] if len(place.parts) > 2 else place.as_posix()
            clips.append(Clip(place.as_posix(), path, inner.name, group))
    if not clips:
        raise NotFoundError(f"{folder} holds no folder of audio files", hint="give a folder with one folder a class")
    return sorted(clips)


def _require_enough(name: str, clips: Sequence[Clip]) -> None:
    groups: dict[str, set[str]] = {}
    for clip in clips:
        groups.setdefault(clip.label, set()).add(clip.group)
    if len(clips) < FEWEST_CLIPS:
        raise CheckpointError(f"{name} has {amount(len(clips), 'clip')}, at least {FEWEST_CLIPS} are needed")
    if len(groups) < 2:
        raise CheckpointError(f"{name} has one class alone, {quote(next(iter(groups)))}", hint="give two or more")
    for label, found in groups.items():
        if len(found) < 2:
            raise CheckpointError(
                f"{name}: all of class {quote(label)} is in the group {quote(next(iter(found)))}, so nothing of it can "
                "be held out",
                hint="give each class clips of two or more groups: speakers, recordings",
            )
