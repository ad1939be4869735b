"""Cut the probe batch that the package ships from recordings in Debian packages.

    mkdir sources && cd sources
    apt-get download pocketsphinx-testdata festvox-ru asterisk-prompt-fr-armelle \
        asterisk-core-sounds-it-g722 asterisk-core-sounds-ru-g722
    for package in *.deb; do dpkg-deb -x "$package" .; done && cd ..
    pip install av soundfile && python make.py sources ../../speechft_merge/similarity/probe_audio
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 16_000
SECONDS = 2.2
"""At most, of a clip: from where the speech begins, cut where it ends."""
RAW = {"format": "s16le", "options": {"sample_rate": str(RATE), "ch_layout": "mono"}}

SPHINX = "usr/share/pocketsphinx/test/data"
FESTVOX = "usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav"
ASTERISK = "usr/share/asterisk/sounds"
CLIPS = {
    "en-librivox": (f"{SPHINX}/librivox/sense_and_sensibility_01_austen_64kb-0*.wav", "870 880 890 920 930"),
    "en-cards": (f"{SPHINX}/cards/00*.wav", "1 3 5"),
    "en-goforward": (f"{SPHINX}/*.raw", "goforward"),
    "ru-festvox": (f"{FESTVOX}/ru_0*.wav", "038 198 359 517 684"),
    "ru-ivrvoice": (f"{ASTERISK}/ru_RU_f_IvrvoiceRU/*.g722", "agent-alreadyon vm-intro vm-review"),
    "it-flora": (f"{ASTERISK}/it_IT_m_Carlo/*.g722", "agent-alreadyon vm-intro tt-allbusy vm-opts"),
    "fr-armelle": (f"{ASTERISK}/fr/*.gsm", "agent-alreadyon vm-intro vm-review"),
}
"""Kind -> where its files are, and what stands for the asterisk."""


def decode(path: Path) -> np.ndarray:
    """Samples of any file, float, mono, 16 kHz."""
    kind = RAW if path.suffix == ".raw" else {}
    with av.open(str(path), **kind) as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames])


def speech(samples: np.ndarray) -> np.ndarray:
    """From 50 ms before the first loud 20 ms to the last quiet place within the length allowed."""
    window = RATE // 50
    power = np.sqrt(np.mean(samples[: len(samples) // window * window].reshape(-1, window).astype(float) ** 2, axis=1))
    loud = np.flatnonzero(power > 0.1 * power.max())
    start = max(0, loud[0] * window - RATE // 20)
    stop = min(len(samples), loud[-1] * window + RATE // 20, start + int(SECONDS * RATE))
    return samples[start:stop]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for kind, (place, names) in CLIPS.items():
        for number, name in enumerate(names.split(), 1):
            clip = speech(decode(given.sources / place.replace("*", name)))
            soundfile.write(given.out / f"{kind}-{number}.flac", clip, RATE, subtype="PCM_16")
            print(f"{kind}-{number}: {len(clip) / RATE:.2f} s of {name}")


if __name__ == "__main__":
    main()
