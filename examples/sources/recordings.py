"""The recordings of the Debian packages: decoded to 16 kHz, by voice, and cut into crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

RATE = 16000
PROMPTS = "usr/share/asterisk/sounds"
VOICES = {
    "allison-en": "en_US_f_Allison",
    "allison-es": "es_MX_f_Allison",
    "june-fr": "fr_CA_f_June",
    "carlo-it": "it_IT_m_Carlo",
    "ivrvoice-ru": "ru_RU_f_IvrvoiceRU",
}
FESTVOX = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
FISHES = "usr/share/games/fillets-ng/sound"
STAMPS = "usr/share/tuxpaint/stamps"
STAMP_LANGUAGES = ("be", "bg", "ca", "el", "es", "fr", "ro", "ru")

Samples = NDArray[np.int16]


def decode(path: Path) -> Samples:
    """The first audio stream of a file as mono 16-bit samples at 16 kHz (a few clips are empty)."""
    import av  # for those alone who decode

    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([np.empty(0, np.int16), *(frame.to_ndarray()[0] for frame in frames)])


def voice_paths(speech: Path) -> dict[str, list[Path]]:
    """The clips of each Asterisk voice."""
    return {
        name: sorted(path for path in (speech / PROMPTS / folder).rglob("*.g722") if path.parent.name != "silence")
        for name, folder in VOICES.items()
    }


def fish_paths(speech: Path) -> dict[str, list[Path]]:
    """The clips of the small (m) and the big fish (v) of fillets-ng, in Czech and in Dutch."""
    return {
        f"{fish}-{language}": sorted((speech / FISHES).glob(f"*/{language}/*-{letter}-*.ogg"))
        for language in ("cs", "nl")
        for fish, letter in (("small", "m"), ("big", "v"))
    }


def stamp_paths(speech: Path) -> dict[str, list[Path]]:
    """The descriptions of tuxpaint's stamps, read by one voice a language."""
    return {
        f"stamps-{language}": sorted((speech / STAMPS).rglob(f"*_desc_{language}.ogg")) for language in STAMP_LANGUAGES
    }


def voice_clips(speech: Path, *, held_out: bool, most: int | None = None) -> dict[str, Samples]:
    """Each Asterisk voice as `joined` makes it."""
    return {name: joined(name, paths, held_out=held_out, most=most) for name, paths in voice_paths(speech).items()}


def joined(name: str, paths: list[Path], *, held_out: bool, most: int | None) -> Samples:
    """Every tenth of a voice's clips, which training does without, or all others, as one recording.

    At most so many clips, spread evenly.
    """
    if not paths:
        raise FileNotFoundError(f"no recordings of {name}")
    chosen = spread([path for index, path in enumerate(paths) if (index % 10 == 0) == held_out], most)
    return np.concatenate([decode(path) for path in chosen])


def spread(paths: list[Path], most: int | None) -> list[Path]:
    """At most so many of the paths, spread evenly."""
    return paths if most is None else paths[:: -(-len(paths) // most)]


def festvox_paths(speech: Path, *, held_out: bool | None = None) -> list[Path]:
    """The utterances of festvox-ru: every fifth, which is held out of training, or the others; by default all."""
    paths = sorted((speech / FESTVOX / "wav").glob("*.wav"))
    if not paths:
        raise FileNotFoundError(f"no .wav files below {speech / FESTVOX}")
    return [path for index, path in enumerate(paths) if held_out in (None, index % 5 == 0)]


def festvox_phones(wav: Path) -> list[tuple[float, str]]:
    """The (end time in seconds, phone) pairs of one utterance of festvox-ru."""
    lines = (wav.parent.parent / "lab" / f"{wav.stem}.lab").read_text(encoding="utf-8", errors="replace").splitlines()
    fields = [line.split() for line in lines[lines.index("#") + 1 :]]
    return [(float(field[0]), field[2]) for field in fields if len(field) >= 3]


def phone_windows(paths: list[Path], window: int, seconds: int) -> dict[str, Samples]:
    """Utterances of festvox-ru, at most so many seconds of each, cut into windows of so many samples.

    With the number of the phone in the middle of each frame of 20 ms, -1 after the last, and that of the utterance.
    """
    marks = {path: festvox_phones(path) for path in paths}
    alphabet = sorted({phone for found in marks.values() for _, phone in found})
    waves, labels, owners = [], [], []
    frame = RATE // 50
    for owner, path in enumerate(paths):
        wave = decode(path)
        ends, phones = zip(*marks[path], strict=True)
        for start in range(0, min(len(wave), seconds * RATE) - window + 1, window):
            centres = (start + frame // 2 + frame * np.arange(window // frame)) / RATE
            places = np.searchsorted(ends, centres)
            found = [alphabet.index(phones[place]) if place < len(phones) else -1 for place in places]
            waves.append(wave[start : start + window])
            labels.append(np.array(found, np.int16))
            owners.append(owner)
    return {"waves": np.stack(waves), "labels": np.stack(labels), "utterance": np.array(owners, np.int16)}


def random_crops(recording: Samples, count: int, length: int, generator: np.random.Generator) -> torch.Tensor:
    """Crops of `length` samples from random places, scaled to -1..1."""
    starts = generator.integers(0, len(recording) - length, size=count)
    return torch.from_numpy(
        np.stack([recording[start : start + length] for start in starts]).astype(np.float32) / 32768
    )


def normalise(waves: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance per row, as Wav2Vec2FeatureExtractor does with do_normalize."""
    centred = waves - waves.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-7)
