"""What becomes of the audio that people have: any rate, any number of channels, any length, and broken files."""

from __future__ import annotations

import itertools
import math
import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError
from speechft_merge.similarity.audio import Stretch, read_clip
from speechft_merge.similarity.probe import BUILT_IN, choose_clips, read_probe
from speechft_merge.similarity.request import ProbeRequest

if TYPE_CHECKING:
    from conftest import WriteAudio


def test_the_built_in_probe_is_24_clips_of_speech_below_a_megabyte() -> None:
    probe = read_probe(None, 16_000)
    assert len(probe.clips) == 24
    assert 45 < probe.seconds < 60
    assert probe.skipped == {}
    assert (probe.repeated, probe.grouped_by) == (0, "voice")
    assert probe.record.groups == {
        "pocketsphinx": 4, "librivox": 5, "armelle": 3, "flora": 4, "festvox": 5, "ivrvoice": 3
    }  # fmt: skip
    assert sum(path.stat().st_size for path in BUILT_IN.glob("*.flac")) < 1_000_000
    assert {path.name.split("-")[0] for path in BUILT_IN.glob("*.flac")} == {"en", "fr", "it", "ru"}


def test_every_file_of_the_built_in_probe_has_its_licence_stated() -> None:
    stated = (BUILT_IN / "README.md").read_text()
    for path in BUILT_IN.glob("*.flac"):
        assert f"`{path.stem.rpartition('-')[0]}-*`" in stated


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_formats_are_read(name: str, write_audio: WriteAudio) -> None:
    probe = read_probe([write_audio(name, 2.0, 44_100)], 16_000)
    assert probe.seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 2), (96_000, 1), (22_050, 6), (16_000, 1)])
def test_any_rate_and_number_of_channels_become_mono_at_the_models_rate(
    rate: int, channels: int, write_audio: WriteAudio
) -> None:
    probe = read_probe([write_audio("a.wav", 1.0, rate, channels)], 16_000)
    (clip,) = probe.clips
    assert clip.ndim == 1
    assert clip.dtype == np.float32
    assert len(clip) == pytest.approx(16_000, abs=2)


def test_a_tone_keeps_its_pitch_when_it_is_resampled(tmp_path: Path) -> None:
    time = np.arange(96_000) / 96_000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 1_000 * time), 96_000)
    (clip,) = read_probe([tmp_path / "tone.wav"], 16_000).clips
    assert np.abs(np.fft.rfft(clip)).argmax() * 16_000 / len(clip) == pytest.approx(1_000, abs=2)


def test_folders_are_searched_and_a_list_keeps_its_order(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("in/b.wav", 1.0)
    write_audio("in/deep/a.flac", 2.0)
    write_audio("in/deep/er/c.flac", 4.0)
    (tmp_path / "in/notes.txt").write_text("no audio")
    single = write_audio("single.wav", 3.0)
    probe = read_probe([single, tmp_path / "in"], 16_000)
    assert [round(len(clip) / 16_000) for clip in probe.clips] == [3, 1, 2, 4]
    assert probe.skipped == {}


def test_equal_probes_have_equal_sums_and_others_have_others(write_audio: WriteAudio) -> None:
    first, second = write_audio("a.wav", 1.0), write_audio("b.wav", 1.5)
    whole = read_probe([first, second], 16_000)
    assert read_probe([first, second], 16_000).sha256 == whole.sha256
    assert read_probe([second, first], 16_000).sha256 != whole.sha256
    assert read_probe([first], 16_000).sha256 != whole.sha256


def test_of_a_long_list_all_is_sampled_within_the_bound(write_audio: WriteAudio) -> None:
    files = [write_audio(f"{number:02d}.wav", 1 + number / 100) for number in range(20)]
    probe = read_probe(files, 16_000, seconds=10.0)
    assert 8 < probe.seconds <= 10
    assert len(set(probe.files)) > 12
    assert [*dict.fromkeys(probe.files)] == sorted({*probe.files})


seconds_of_files = st.lists(st.floats(0.05, 400), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    lengths=seconds_of_files,
    groups=st.integers(1, 8),
    seconds=st.floats(0.5, 900),
    rate=st.sampled_from([8_000, 44_100]),
)
def test_clips_fill_the_seconds_allowed_and_none_overlap(
    lengths: list[float], groups: int, seconds: float, rate: int
) -> None:
    files = {
        Stretch(Path(f"{number}.wav"), 0, max(1, int(length * rate)), rate): str(number % groups)
        for number, length in enumerate(lengths)
    }
    clips = choose_clips(files, seconds)
    whole = {file.path: file for file in files}
    total, longest = sum(clip.seconds for clip, _ in clips), max(file.seconds for file in files)
    assert total <= seconds + 0.01
    there = sum(file.seconds for file in files)
    assert total >= 0.99 * there - 0.01 if there <= seconds and longest < 15 else True
    for clip, group in clips:
        assert 0 <= clip.start < clip.stop <= whole[clip.path].stop
        assert files[whole[clip.path]] == group
        assert clip.seconds <= 15.001
    for (clip, _), (after, _) in itertools.pairwise(clips):
        assert clip.path != after.path or clip.stop <= after.start


def test_what_is_allowed_is_shared_out_among_the_groups() -> None:
    seconds = {"a": 400, "b": 80, "c": 4, "d": 90}
    files = {Stretch(Path(f"{group}{n}"), 0, 8_000 * s, 8_000): group for group, s in seconds.items() for n in range(3)}
    used = dict.fromkeys(seconds, 0.0)
    for clip, group in choose_clips(files, 120.0):
        used[group] += clip.seconds
    assert used == {"c": 12, **dict.fromkeys("abd", pytest.approx(36, abs=6))}


@pytest.mark.parametrize(("shorter", "longer"), [(29.99, 30.01), (14.9, 15.1), (3.99, 4.01), (119.9, 120.1)])
def test_a_little_more_audio_makes_a_little_difference(shorter: float, longer: float) -> None:
    """There are no lengths, of a file alone or among others, at which a probe becomes another one."""
    for others in (0, 3, 6):
        found = []
        for length in (shorter, longer):
            seconds = [length, *[length / 2] * others]
            files = {Stretch(Path(f"{n}"), 0, int(s * 16_000), 16_000): str(n) for n, s in enumerate(seconds)}
            found.append(sum(clip.seconds for clip, _ in choose_clips(files, 120.0)))
        assert found[0] == pytest.approx(found[1], rel=0.1)


@pytest.mark.parametrize("seconds", [4.0, 12.0, 30.0, 31.0, 500.0])
def test_one_recording_of_any_length_gives_clips_enough_for_a_figure(seconds: float) -> None:
    clips = choose_clips({Stretch(Path("a"), 0, int(seconds * 8_000), 8_000): "a"}, 120.0)
    assert len(clips) == min(20, int(seconds))


@pytest.mark.parametrize("seconds", [5.0, 10.0, 25.0])
def test_few_seconds_of_the_built_in_probe_have_every_voice_in_them(seconds: float) -> None:
    probe = read_probe(None, 16_000, seconds)
    assert len(probe.record.groups) == 6
    assert 0.8 * seconds < probe.seconds <= seconds


def test_clips_of_equal_samples_are_counted_once_in_whatever_format(write_audio: WriteAudio, tmp_path: Path) -> None:
    first, second = write_audio("a.wav"), write_audio("b.wav", 1.5)
    samples, rate = soundfile.read(first)
    soundfile.write(tmp_path / "a.flac", samples, rate)
    probe = read_probe([first, tmp_path / "a.flac", second, tmp_path / "a.flac"], 16_000)
    alone = read_probe([first, second], 16_000)
    assert (probe.repeated, probe.sha256) == (1, alone.sha256)
    assert probe.record.repeated == 1


def test_two_hours_in_one_file_are_cut_into_clips_within_the_bound(tmp_path: Path) -> None:
    """Without being read: of 230 MB of samples, two are needed."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8_000, 1) as file:
        minute = (0.1 * np.random.default_rng(0).standard_normal(8_000 * 60)).astype(np.float32)
        for number in range(120):  # no two alike, or they would be counted once
            file.write(minute * (1 - number / 240))
    probe = read_probe([tmp_path / "long.flac"], 16_000, seconds=60)
    assert len(probe.clips) == 20
    assert probe.seconds == pytest.approx(60)
    assert {*probe.groups} == {"long.flac"}


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
    assert 2 <= read_probe([write_audio("a.wav", 8.0)], 16_000, seconds=2.5).seconds <= 2.5


# Bad audio.


def test_silent_empty_and_broken_files_are_left_out_and_named(write_audio: WriteAudio, tmp_path: Path) -> None:
    good = write_audio("good.wav")
    silent = write_audio("silent.wav", gain=0.0)
    soundfile.write(tmp_path / "constant.wav", np.full(16_000, 0.25), 16_000)
    empty = write_audio("empty.wav", seconds=0.0)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(40))
    cut = tmp_path / "nothing.flac"
    cut.write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    constant = tmp_path / "constant.wav"
    probe = read_probe([good, silent, constant, empty, broken, cut, tmp_path / "nan.wav"], 16_000)
    assert len(probe.clips) == 1
    assert probe.skipped[str(silent)] == probe.skipped[str(constant)] == "is silent"
    assert probe.skipped[str(empty)] == "is empty"
    assert probe.skipped[str(broken)].startswith("cannot be read")
    assert probe.skipped[str(cut)].startswith("cannot be read")
    assert probe.skipped[str(tmp_path / "nan.wav")] == "holds samples that are not finite"


def test_of_a_recording_with_a_silent_minute_only_that_is_left_out_and_named(tmp_path: Path) -> None:
    samples = np.sin(np.arange(40 * 4_000))
    samples[: 10 * 4_000] = 0
    soundfile.write(tmp_path / "long.wav", samples, 4_000)
    probe = read_probe([tmp_path / "long.wav"], 4_000)
    assert [Path(name).name for name in probe.skipped] == [f"long.wav at {start:.1f} s" for start in range(0, 10, 2)]
    assert len(probe.clips) == 20 - len(probe.skipped)


def test_no_number_of_seconds_is_too_large_or_too_small_to_be_answered(write_audio: WriteAudio) -> None:
    good = write_audio("good.wav")
    assert len(read_probe([good], 16_000, 1e308).clips) == len(read_probe([good], 16_000).clips)
    with pytest.raises(CheckpointError, match="1e-09 seconds hold none"):
        read_probe([good], 16_000, 1e-9)
    with pytest.raises(UsageError, match="cannot be of inf seconds"):
        ProbeRequest(seconds=math.inf)


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
    with pytest.raises(UsageError, match="cannot be of"):
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
        clip = read_clip(path, 48_000)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert len(clip) == 960_000


def test_a_long_recording_is_sampled_from_its_beginning_to_its_end() -> None:
    starts = [clip.start for clip, _ in choose_clips({Stretch(Path("a"), 0, 6_000, 10): "a"}, 120.0)]
    assert len(starts) == 20
    assert {after - before for before, after in itertools.pairwise([*starts, 6_000])} == {300}


@pytest.mark.parametrize("groups", [30, 60])
def test_each_of_up_to_60_groups_has_a_clip(groups: int) -> None:
    files = {Stretch(Path(str(number)), 0, 1_000, 10): str(number) for number in range(groups)}
    assert {group for _, group in choose_clips(files, 120.0)} == {*files.values()}


def test_the_same_numbers_at_another_rate_are_another_clip(tmp_path: Path) -> None:
    samples = np.sin(np.arange(8_000))
    for rate in (8_000, 16_000):
        soundfile.write(tmp_path / f"{rate}.wav", samples, rate)
    probe = read_probe([tmp_path / "8000.wav", tmp_path / "16000.wav"], 16_000)
    assert len({*probe.files}) == 2
    assert probe.repeated == 0
