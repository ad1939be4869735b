"""The recordings of this experiment in one file: the clips of each voice, and the utterances with phones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.sources.recordings import (
    RATE,
    decode,
    festvox_paths,
    fish_paths,
    phone_windows,
    spread,
    stamp_paths,
    voice_paths,
)

WINDOW = RATE
"""Samples of a window with phones."""
SECONDS = 10
"""Of each utterance, at most."""
CLIP_SECONDS = 4
"""Of each clip, at most."""
SHORTEST = 0.6
"""Seconds of a clip that is of use."""
CLIPS = 225
"""Of each voice, to train and to fit on, at most."""


def prepare(speech: Path, out: Path) -> None:
    """Write the file, which is there whole or not at all; every fourth clip of a voice is for the test."""
    arrays = {}
    for name, paths in (voice_paths(speech) | fish_paths(speech) | stamp_paths(speech)).items():
        if not paths:
            raise FileNotFoundError(f"no recordings of {name} below {speech}")
        test = [index % 4 == 1 for index in range(len(paths))]
        splits = {
            "test": [path for path, chosen in zip(paths, test, strict=True) if chosen],
            "fit": spread([path for path, chosen in zip(paths, test, strict=True) if not chosen], CLIPS),
        }
        for split, chosen in splits.items():
            clips = [decode(path)[: CLIP_SECONDS * RATE] for path in chosen]
            clips = [clip for clip in clips if len(clip) >= SHORTEST * RATE]
            arrays[f"{split}/{name}"] = np.concatenate(clips)
            arrays[f"{split}-ends/{name}"] = np.cumsum([len(clip) for clip in clips])
        print(name, {split: len(arrays[f"{split}-ends/{name}"]) for split in splits}, flush=True)
    utterances = phone_windows(festvox_paths(speech), WINDOW, SECONDS)
    part = out.with_suffix(".part.npz")
    np.savez(part, **arrays, **{f"phones/{name}": array for name, array in utterances.items()})
    part.replace(out)
