"""What becomes of the audio that people have: any rate, any number of channels, any length, and broken files."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError
from speechft_merge.similarity.probe import BUILT_IN, read_probe
from speechft_merge.similarity.request import ProbeRequest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteAudio


def test_the_built_in_probe_is_24_clips_of_speech_below_a_megabyte() -> None:
    probe = read_probe(None, 16_000)
    assert len(probe.clips) == 24
    assert 45 < probe.seconds < 60
    assert probe.skipped == {}
    assert sum(path.stat().st_size for path in BUILT_IN.glob("*.flac")) < 1_000_000
    assert {path.name.split("-")[0] for path in BUILT_IN.glob("*.flac")} == {"en", "fr", "it", "ru"}


def test_every_file_of_the_built_in_probe_has_its_licence_stated() -> None:
    stated = (BUILT_IN / "README.md").read_text()
    for path in BUILT_IN.glob("*.flac"):
        assert f"`{path.stem.rpartition('-')[0]}-*`" in stated


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_formats_are_read(name: str, write_audio: WriteAudio) -> None:
    probe = read_probe([write_audio(name, 2.0, 44_100)], 16_000)
    assert len(probe.clips) == 1
    assert probe.seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 2), (96_000, 1), (22_050, 6), (16_000, 1)])
def test_any_rate_and_number_of_channels_become_mono_at_the_models_rate(
    rate: int, channels: int, write_audio: WriteAudio
) -> None:
    probe = read_probe([write_audio("a.wav", 1.5, rate, channels)], 16_000)
    (clip,) = probe.clips
    assert clip.ndim == 1
    assert clip.dtype == np.float32
    assert len(clip) == pytest.approx(24_000, abs=2)


def test_a_tone_keeps_its_pitch_when_it_is_resampled(tmp_path: Path) -> None:
    time = np.arange(96_000) / 96_000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 1_000 * time), 96_000)
    (clip,) = read_probe([tmp_path / "tone.wav"], 16_000).clips
    assert np.abs(np.fft.rfft(clip)).argmax() * 16_000 / len(clip) == pytest.approx(1_000, abs=2)


def test_folders_are_searched_and_a_list_keeps_its_order(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("in/b.wav", 1.0)
    write_audio("in/deep/a.flac", 2.0)
    (tmp_path / "in/notes.txt").write_text("no audio")
    single = write_audio("single.wav", 3.0)
    probe = read_probe([single, tmp_path / "in"], 16_000)
    assert [round(len(clip) / 16_000) for clip in probe.clips] == [3, 1, 2]
    assert probe.skipped == {}


def test_equal_probes_have_equal_sums_and_others_have_others(write_audio: WriteAudio) -> None:
    first, second = write_audio("a.wav", 1.0), write_audio("b.wav", 1.5)
    whole = read_probe([first, second], 16_000)
    assert read_probe([first, second], 16_000).sha256 == whole.sha256
    assert read_probe([second, first], 16_000).sha256 != whole.sha256
    assert read_probe([first], 16_000).sha256 != whole.sha256


def test_a_long_list_is_thinned_evenly_to_the_bound(write_audio: WriteAudio) -> None:
    files = [write_audio(f"{number:02d}.wav", 1 + number / 100) for number in range(20)]
    probe = read_probe(files, 16_000, seconds=6.0)
    assert 4 < probe.seconds <= 6
    lengths = [len(clip) for clip in probe.clips]
    assert lengths == sorted(lengths)
    assert lengths[-1] > 1.12 * 16_000, "the end of the list is sampled too"


def test_two_hours_in_one_file_are_cut_into_utterances_within_the_bound(tmp_path: Path) -> None:
    """Without being read: of 230 MB of samples, two are needed."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8_000, 1) as file:
        minute = (0.1 * np.random.default_rng(0).standard_normal(8_000 * 60)).astype(np.float32)
        for _ in range(120):
            file.write(minute)
    probe = read_probe([tmp_path / "long.flac"], 16_000, seconds=60)
    assert len(probe.clips) == 20
    assert probe.seconds == pytest.approx(60)


def test_a_recording_gives_twenty_pieces_of_itself_however_much_audio_is_allowed(write_audio: WriteAudio) -> None:
    assert len(read_probe([write_audio("a.wav", 40.0)], 16_000, seconds=600).clips) == 20


def test_a_file_that_does_not_tell_its_length_is_left_out(write_audio: WriteAudio) -> None:
    """As a streaming encoder writes it: libsndfile then says 2^63 - 1 frames."""
    path = write_audio("piped.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: the last 36 bits of these eight bytes are the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    good = write_audio("good.wav")
    assert "does not state its length" in read_probe([path, good], 16_000).skipped[str(path)]


def test_one_file_longer_than_the_bound_is_cut_to_it(write_audio: WriteAudio) -> None:
    assert read_probe([write_audio("a.wav", 8.0)], 16_000, seconds=2.5).seconds == pytest.approx(2.5)


# Bad audio.


def test_silent_empty_and_broken_files_are_left_out_and_named(write_audio: WriteAudio, tmp_path: Path) -> None:
    good = write_audio("good.wav")
    silent = write_audio("silent.wav", gain=0.0)
    empty = write_audio("empty.wav", seconds=0.0)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(40))
    cut = tmp_path / "nothing.flac"
    cut.write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    probe = read_probe([good, silent, empty, broken, cut, tmp_path / "nan.wav"], 16_000)
    assert len(probe.clips) == 1
    assert probe.skipped[str(silent)] == "is silent"
    assert probe.skipped[str(empty)] == "is empty"
    assert probe.skipped[str(broken)].startswith("cannot be read")
    assert probe.skipped[str(cut)].startswith("cannot be read")
    assert probe.skipped[str(tmp_path / "nan.wav")] == "holds samples that are not finite"


def test_a_file_that_is_no_audio_alone_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(CheckpointError, match=r"no clip of the probe can be used \(.*text\.wav: cannot be read"):
        read_probe([tmp_path / "text.wav"], 16_000)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no audio file or folder"):
        read_probe([tmp_path / "missing.wav"], 16_000)
    with pytest.raises(NotFoundError, match="holds no audio file"):
        read_probe([tmp_path], 16_000)


def test_a_probe_of_no_length_is_refused() -> None:
    with pytest.raises(UsageError, match="holds nothing"):
        ProbeRequest(seconds=0)


def test_a_pipe_a_device_and_what_no_recorder_makes_are_not_read(write_audio: WriteAudio, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        with pytest.raises(NotFoundError, match="neither a file nor a folder"):
            read_probe([path], 16_000)
    good = write_audio("good.wav", 1.0)
    fast, wide = write_audio("fast.wav", 0.001, 2_000_000), write_audio("wide.wav", 0.01, 16_000, 100)
    probe = read_probe([good, fast, wide], 16_000)
    assert len(probe.clips) == 1
    assert [why.partition(";")[0] for why in probe.skipped.values()] == [
        "has 1 channels of 2000000 samples a second",
        "has 100 channels of 16000 samples a second",
    ]


def test_many_channels_are_not_in_memory_at_once(write_audio: WriteAudio) -> None:
    path = write_audio("wide.wav", 20.0, 48_000, 32)  # 123 MB as float32
    tracemalloc.start()
    try:
        (clip,) = read_probe([path], 48_000).clips
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert len(clip) == 960_000
