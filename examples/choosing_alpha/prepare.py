"""The recordings of this experiment in one file: each voice, to train on and held out, and windows with phones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.sources.recordings import (
    RATE,
    Samples,
    festvox_paths,
    fish_paths,
    joined,
    phone_windows,
    stamp_paths,
    voice_paths,
)

CLIPS = 250
"""Of each voice, at most."""
SECONDS = 4
"""Of each utterance, at most."""


def voices(speech: Path, *, held_out: bool) -> dict[str, Samples]:
    """One recording of each voice."""
    paths = voice_paths(speech) | fish_paths(speech) | stamp_paths(speech)
    return {name: joined(name, found, held_out=held_out, most=CLIPS) for name, found in paths.items()}


def prepare(speech: Path, out: Path, window: int) -> None:
    """Write the file, which is there whole or not at all."""
    arrays = {}
    for split, held_out in (("train", False), ("test", True)):
        for name, recording in voices(speech, held_out=held_out).items():
            arrays[f"{split}/{name}"] = recording
            print(f"{split} {name}: {len(recording) / RATE / 60:.1f} minutes", flush=True)
    utterances = phone_windows(festvox_paths(speech), window, SECONDS)
    part = out.with_suffix(".part.npz")
    np.savez(part, **arrays, **{f"phones/{name}": array for name, array in utterances.items()})
    part.replace(out)
