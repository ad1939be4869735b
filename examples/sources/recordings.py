"""The recordings of the Debian packages: decoded to 16 kHz, by voice, and cut into crops."""

from __future__ import annotations

from pathlib import Path

import av
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
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([np.empty(0, np.int16), *(frame.to_ndarray()[0] for frame in frames)])


def voice_clips(speech: Path, *, held_out: bool, most: int | None = None) -> dict[str, Samples]:
    """Each Asterisk voice as one long recording of at most so many clips; every tenth is held out of training."""
    voices = {}
    for name, folder in VOICES.items():
        root = speech / PROMPTS / folder
        paths = sorted(path for path in root.rglob("*.g722") if path.parent.name != "silence")
        voices[name] = joined(paths, root, held_out=held_out, most=most)
    return voices


def fish_clips(speech: Path, *, held_out: bool, most: int | None = None) -> dict[str, Samples]:
    """The small (m) and the big fish (v) of fillets-ng, in Czech and in Dutch, as `voice_clips`."""
    root = speech / FISHES
    return {
        f"{fish}-{language}": joined(
            sorted(root.glob(f"*/{language}/*-{letter}-*.ogg")), root, held_out=held_out, most=most
        )
        for language in ("cs", "nl")
        for fish, letter in (("small", "m"), ("big", "v"))
    }


def stamp_clips(speech: Path, *, held_out: bool, most: int | None = None) -> dict[str, Samples]:
    """The descriptions of tuxpaint's stamps, read by one voice a language, as `voice_clips`."""
    root = speech / STAMPS
    return {
        f"stamps-{language}": joined(sorted(root.rglob(f"*_desc_{language}.ogg")), root, held_out=held_out, most=most)
        for language in STAMP_LANGUAGES
    }


def joined(paths: list[Path], root: Path, *, held_out: bool, most: int | None) -> Samples:
    """Every tenth of the files, or all others, as one recording; at most so many, spread evenly."""
    if not paths:
        raise FileNotFoundError(f"no recordings below {root}")
    chosen = [path for index, path in enumerate(paths) if (index % 10 == 0) == held_out]
    if most is not None:
        chosen = chosen[:: -(-len(chosen) // most)]
    return np.concatenate([decode(path) for path in chosen])


def festvox_paths(speech: Path, *, held_out: bool) -> list[Path]:
    """The utterances of festvox-ru; every fifth is held out of training."""
    paths = sorted((speech / FESTVOX / "wav").glob("*.wav"))
    if not paths:
        raise FileNotFoundError(f"no .wav files below {speech / FESTVOX}")
    return [path for index, path in enumerate(paths) if (index % 5 == 0) == held_out]


def festvox_phones(wav: Path) -> list[tuple[float, str]]:
    """The (end time in seconds, phone) pairs of one utterance of festvox-ru."""
    lines = (wav.parent.parent / "lab" / f"{wav.stem}.lab").read_text(encoding="utf-8", errors="replace").splitlines()
    fields = [line.split() for line in lines[lines.index("#") + 1 :]]
    return [(float(field[0]), field[2]) for field in fields if len(field) >= 3]


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
