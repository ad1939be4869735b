"""The example of stage 1: any recordings, any family, one command to a fine-tune, a merge of it and a comparison."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
from models import build, transformers
from tokenizers.pre_tokenizers import ByteLevel

from speechft_merge.errors import CheckpointError, NotFoundError, SpeechFTMergeError, UsageError
from speechft_merge.scoring.clips import Clip
from speechft_merge.similarity.probe import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

from examples.stage1 import __main__ as example  # noqa: E402
from examples.stage1 import data, score, train  # noqa: E402

ROOT = Path(__file__).parents[2]
SPEECH = sorted(BUILT_IN.glob("*.flac"))
VOICES = {"librivox": "a", "festvox": "b"}
"""Two groups of the clips that ship with the package, as classes."""


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Real speech in a folder a class: two pieces of each recording."""
    for path in SPEECH:
        voice = next((VOICES[word] for word in VOICES if word in path.name), None)
        if voice:
            samples, rate = soundfile.read(path)
            (tmp_path / "classes" / voice).mkdir(parents=True, exist_ok=True)
            for place, start in enumerate((0.5, 1.0)):
                piece = samples[int(start * rate) : int((start + 0.5) * rate)]
                soundfile.write(tmp_path / "classes" / voice / f"{path.stem}-{place}.wav", piece, rate)
    return tmp_path / "classes"


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Real speech with texts beside it, as short as the window of the tiny Whisper."""
    folder = tmp_path / "spoken"
    folder.mkdir()
    for number, path in enumerate(SPEECH[:12]):
        samples, rate = soundfile.read(path)
        soundfile.write(folder / f"{path.stem}.wav", samples[rate // 2 :][: int(0.38 * rate)], rate)
        (folder / f"{path.stem}.txt").write_text(f"Go, {'a b ' * (number % 3)}I't.\n")
    return folder


def save_base(family: str, folder: Path) -> str:
    if family == "Whisper":
        return save_whisper(folder)
    build(family, **({"add_adapter": False} if family == "Wav2Vec2Bert" else {})).save_pretrained(folder)
    kind = "SeamlessM4TFeatureExtractor" if family == "Wav2Vec2Bert" else "Wav2Vec2FeatureExtractor"
    sizes = {"feature_size": 8, "num_mel_bins": 8} if family == "Wav2Vec2Bert" else {}
    getattr(transformers(), kind)(**sizes).save_pretrained(folder)
    return str(folder)


def save_whisper(folder: Path) -> str:
    """A model with a token a byte, that hears 0.4 seconds."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = transformers().WhisperTokenizer(vocab=vocabulary, merges=[])
    start = "<|startoftranscript|>"
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [start, "<|notimestamps|>"]})
    begin, end = (tokenizer.convert_tokens_to_ids(token) for token in (start, tokenizer.eos_token))
    ends = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end, "decoder_start_token_id": begin}
    model = build("Whisper", "ForConditionalGeneration", vocab_size=len(tokenizer), max_target_positions=40, **ends)
    model.generation_config = transformers().GenerationConfig(
        max_length=20, no_timestamps_token_id=begin + 1, is_multilingual=False, **ends
    )
    model.save_pretrained(folder)
    transformers().WhisperProcessor(transformers().WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(
        folder
    )
    return str(folder)


def short_probe(folder: Path) -> Path:
    """Pieces of the clips that ship, in place of all."""
    folder.mkdir()
    for path in SPEECH[::3]:
        samples, rate = soundfile.read(path)
        soundfile.write(folder / path.name, samples[rate // 2 :][: int(0.39 * rate)], rate)
    kept = {"path", *(path.name for path in folder.iterdir())}
    lines = (BUILT_IN / "voices.tsv").read_text().splitlines()
    (folder / "voices.tsv").write_text("\n".join(line for line in lines if line.split("\t")[0] in kept))
    return folder


def words(base: str, source: Path, task: str, out: Path, steps: int = 10) -> list[str]:
    return [
        base, "--data", str(source), "--task", task, "-o", str(out), "--steps", str(steps), "--batch-size", "2",
        "--seconds", "1", "--learning-rate", "0.01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("Hubert", "classification"),
        ("Wav2Vec2", "ctc"),
        ("WavLM", "classification"),
        ("Wav2Vec2Bert", "ctc"),
        ("Whisper", "classification"),
        ("Whisper", "seq2seq"),
        pytest.param("Hubert", "ctc", marks=pytest.mark.slow),
        pytest.param("Wav2Vec2", "classification", marks=pytest.mark.slow),
        pytest.param("WavLM", "ctc", marks=pytest.mark.slow),
        pytest.param("Wav2Vec2Bert", "classification", marks=pytest.mark.slow),
    ],
)
def test_one_command_goes_from_recordings_to_a_merge_and_a_comparison(
    family: str, task: str, classes: Path, spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(train, "EVALUATIONS", 1)
    monkeypatch.setattr("speechft_merge.similarity.probe.BUILT_IN", short_probe(tmp_path / "probe"))
    if task == "classification":  # the own head's score starts a process a model, see below
        monkeypatch.setattr(example, "scores", lambda args, split: ["--probe-task", f"probe={classes}"])
    base = save_base(family, tmp_path / "base")
    example.main(words(base, classes if task == "classification" else spoken, task, out))

    finetuned, merged = (
        transformers().AutoModel.from_pretrained(path).state_dict() for path in (out / "finetuned", out / "merged-0.25")
    )
    before = transformers().AutoModel.from_pretrained(base).state_dict()
    trained = {name for name in before if "decoder" not in name or task == "seq2seq"}
    moved = {name for name in trained if not torch.equal(before[name], finetuned[name])}
    assert moved
    assert not any("feature_extractor" in name for name in moved)
    for name in moved:
        torch.testing.assert_close(merged[name], before[name] + 0.25 * (finetuned[name] - before[name]))
    assert (out / "features.png").stat().st_size > 1000
    report = json.loads((out / "scores-0.25" / "report.json").read_text())
    assert [cell["alpha"] for cell in report["cells"]] == [0, 0.25, 1]
    assert "probe" in report["scores"] if task == "classification" else "wer" in report["scores"]


@pytest.mark.slow
def test_the_command_as_a_shell_runs_it(classes: Path, tmp_path: Path) -> None:
    """With the score of the fine-tune's own head, and what to type next; a second run does nothing again."""
    base, out = save_base("Hubert", tmp_path / "base"), tmp_path / "run"
    command = [sys.executable, "-m", "examples.stage1", *words(base, classes, "classification", out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "best on the development set: accuracy" in done.stdout
    assert re.search(r"^alpha +own_head", done.stdout, re.M)
    assert done.stdout.splitlines()[-1].startswith("  speechft-merge sweep")
    made = (out / "finetuned" / "model.safetensors").stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert (out / "finetuned" / "model.safetensors").stat().st_mtime_ns == made
    assert re.search(r"^alpha +own_head", again.stdout, re.M)
    assert "eval_accuracy" not in again.stdout
    refused = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2
    assert "holds a run with seed 0" in refused.stderr


def test_an_interrupted_run_ends_as_one_in_one_go(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "run", lambda words: None)
    monkeypatch.setattr(train, "EVALUATIONS", 5)
    base, weights = save_base("Hubert", tmp_path / "base"), []
    example.main(words(base, classes, "classification", tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "finetuned")
    kept = sorted((tmp_path / "broken" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    (kept[-1] / "trainer_state.json").unlink()  # killed while it was written
    example.main(words(base, classes, "classification", tmp_path / "broken"))
    for run in ("whole", "broken"):
        model = transformers().AutoModelForAudioClassification.from_pretrained(tmp_path / run / "finetuned")
        weights.append(model.state_dict())
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []


def test_a_classifier_is_scored_by_its_own_head(classes: Path, tmp_path: Path) -> None:
    model = build(
        "Hubert", "ForSequenceClassification", num_labels=2, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}
    )
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(tmp_path / "model")
    transformers().Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "model")
    rows = [f"{path}\t{path.parent.name}" for path in sorted(classes.rglob("*.wav"))]
    (tmp_path / "test.tsv").write_text("\n".join(rows))
    found = [*score.records(tmp_path / "model", tmp_path / "test.tsv")]
    assert len(found) == len(rows)
    assert [each["correct"] for each in found] == [int("\tb" in row) for row in sorted(rows)]


# where recordings come from
def clip(folder: Path, name: str, text: str | None = None, seconds: float = 0.3) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(name))
    soundfile.write(path, generator.normal(0, 0.1, int(16_000 * seconds)), 16_000)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def names(clips: list[Clip]) -> list[str]:
    return sorted(each.path.name for each in clips)


def test_folders_that_are_named_as_splits_are_these(tmp_path: Path) -> None:
    for split in ("train-clean-100", "train-other", "dev-clean", "test.clean", "notes"):
        clip(tmp_path, f"{split}/a/{split}.wav")
    (tmp_path / "README").write_text("")
    found = data.read_source(str(tmp_path), data.LABEL, tmp_path)
    assert {split: names(clips) for split, clips in found.items()} == {
        "dev": ["dev-clean.wav"],
        "test": ["test.clean.wav"],
        "train": ["train-clean-100.wav", "train-other.wav"],
    }


def test_librispeech_is_read_as_it_is(tmp_path: Path) -> None:
    for split, speaker in (("train-clean-5", "19"), ("dev-clean-2", "20")):
        folder = tmp_path / split / speaker / "198"
        clip(folder, f"{speaker}-198-0000.wav")
        (folder / f"{speaker}-198.trans.txt").write_text(f"{speaker}-198-0000 NORTHANGER ABBEY\n")
    found = data.read_source(str(tmp_path), data.TEXT, tmp_path)
    assert [(each.label.strip(), each.group) for each in found["train"] + found["dev"]] == [
        ("NORTHANGER ABBEY", "19"),
        ("NORTHANGER ABBEY", "20"),
    ]


def test_a_table_may_name_splits_and_groups(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        clip(tmp_path, f"{name}.wav")
    table = tmp_path / "all.tsv"
    table.write_text(
        "split\tpath\tgroup\ttext\ntrain\ta.wav\tann\thello\nvalidation\tb.wav\tbob\tyou\ntest\tc.wav\t\tall\n"
    )
    found = data.read_source(str(table), data.TEXT, tmp_path)
    assert [(split, each.label, each.group) for split, (each,) in found.items()] == [
        ("train", "hello", "ann"),
        ("dev", "you", "bob"),
        ("test", "all", "c.wav"),
    ]
    table.write_bytes("\ufefftext \tpath\r\nhello\ta.wav \r\n\r\nyou\tb.wav\r\n".encode())
    found = data.read_source(str(table), data.TEXT, tmp_path)
    assert {split: names(clips) for split, clips in found.items()} == {"train": ["a.wav", "b.wav"]}
    table.write_text("a.wav\thello\nb.wav\tyou\n")
    assert names(data.read_source(str(table), data.TEXT, tmp_path)["train"]) == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("path\tsplit\na.wav\ttrain\n", CheckpointError, "has no column text; found path, split"),
        ("path\tlabel\na.wav\tglad\n", CheckpointError, "has no column text; found path, label"),
        ("\udcff", CheckpointError, "cannot be read as a table, UTF-8 text"),
        ("path\ttext\tsplit\na.wav\thello\tsometimes\n", CheckpointError, "line 2 lacks a path, a text or a split"),
        ("path\ttext\tsplit\nb.wav\thello\ttrain\n", NotFoundError, "1 files do not exist"),
    ],
)
def test_a_wrong_table_is_an_error(content: str, error: type[SpeechFTMergeError], message: str, tmp_path: Path) -> None:
    clip(tmp_path, "a.wav")
    (tmp_path / "all.tsv").write_text(content, errors="surrogateescape")
    with pytest.raises(error, match=message):
        data.read_source(str(tmp_path / "all.tsv"), data.TEXT, tmp_path)


@pytest.mark.parametrize("inside", [True, False], ids=["audio inside", "audio beside"])
def test_a_dataset_is_read_without_a_decoder_of_its_own(inside: bool, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [clip(tmp_path, f"{number}.wav") for number in range(4)]
    audio = [
        {"path": path.name, "bytes": path.read_bytes()} if inside else {"path": str(path), "bytes": None}
        for path in files
    ]
    features = datasets.Features(
        audio=datasets.Audio(), label=datasets.ClassLabel(names=["glad", "sad"]), speaker_id=datasets.Value("int64")
    )
    columns = {"audio": audio, "label": [0, 1, 0, 1], "speaker_id": [7, 7, 8, 8]}
    whole = datasets.Dataset.from_dict(columns).cast(features)
    datasets.DatasetDict({"train": whole, "validation": whole}).save_to_disk(str(tmp_path / "saved"))
    found = data.read_source(str(tmp_path / "saved"), data.LABEL, tmp_path / "out")
    assert [*found] == ["train", "dev"]
    assert [(each.label, each.group) for each in found["train"]] == [
        ("glad", "7"),
        ("sad", "7"),
        ("glad", "8"),
        ("sad", "8"),
    ]
    assert [each.path.read_bytes() for each in found["dev"]] == [path.read_bytes() for path in files]


def test_a_dataset_needs_a_package_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="datasets is not installed; run pip install datasets"):
        data.read_source("superb/er", data.LABEL, tmp_path)


@pytest.mark.parametrize("source", ["data/nowhere/far", "nowhere.tsv", "/nowhere"])
def test_what_is_neither_there_nor_the_name_of_a_dataset_is_an_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no folder or table"):
        data.read_source(source, data.LABEL, tmp_path)


# what is trained and tested on
def told(into: list[str]) -> Callable[[str], None]:
    return into.append


def test_what_is_silent_short_damaged_or_without_words_is_left_out_and_said(tmp_path: Path) -> None:
    good = clip(tmp_path, "good.wav")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16_000)
    (tmp_path / "text.wav").write_text("hello")
    clips = [Clip(p.name, p, "Hello, all!", p.name) for p in (good, clip(tmp_path, "short.wav", seconds=0.05))]
    clips += [Clip(name, tmp_path / name, "hello", name) for name in ("silent.wav", "text.wav")]
    clips += [Clip("mute", good, "...", "mute"), Clip("long", clip(tmp_path, "long.wav", seconds=31), "hello", "long")]
    said: list[str] = []
    kept = data.usable({"train": clips}, data.TEXT, told(said))
    assert [(each.id, each.label) for each in kept["train"]] == [("good.wav", "hello all")]
    assert len(said) == 5
    assert all(line.startswith("1 of 6 recordings are left out: ") for line in said)


def test_a_recording_is_in_one_split_alone_and_has_a_name_that_a_table_can_hold(tmp_path: Path) -> None:
    plain, odd = clip(tmp_path, "a.wav"), clip(tmp_path, "b\t.wav")
    (tmp_path / "link.wav").symlink_to(plain)
    same = [Clip(name, tmp_path / name, "a", name) for name in ("a.wav", "link.wav")]
    said: list[str] = []
    kept = data.usable({"train": same[:1], "test": [same[1], Clip("b", odd, "a", "b")]}, data.LABEL, told(said))
    assert {split: names(clips) for split, clips in kept.items()} == {"train": ["a.wav"]}
    assert said[0] == "1 of 3 recordings are left out: named twice"
    assert "its name has a tab" in said[1]


def test_a_text_is_not_trained_on_with_half_of_its_recording(tmp_path: Path) -> None:
    clips = [Clip(name, clip(tmp_path, name, seconds=float(name[0])), "a", name) for name in ("1.wav", "3.wav")]
    said: list[str] = []
    assert data.within(clips, data.LABEL, 2, told(said)) == clips
    assert data.within(clips, data.TEXT, 2, told(said)) == clips[:1]
    assert said == ["1 of 2 recordings are left out of training: above 2 s"]
    with pytest.raises(CheckpointError, match=r"below 0.5 s; pass --seconds 30"):
        data.within(clips, data.TEXT, 0.5, told(said))


def pool(groups: int, each: int = 2) -> list[Clip]:
    return [Clip(f"{g}-{n}", Path(f"{g}-{n}.wav"), "ab"[n % 2], str(g)) for g in range(groups) for n in range(each)]


@pytest.mark.parametrize("column", [data.LABEL, data.TEXT])
def test_missing_splits_are_whole_speakers_of_the_training_set(column: str) -> None:
    whole = data.deal({"train": pool(20)}, column, told([]))
    held = {split: {each.group for each in clips} for split, clips in whole.items()}
    assert {split: len(groups) for split, groups in held.items()} == {"train": 16, "dev": 2, "test": 2}
    assert not held["train"] & (held["dev"] | held["test"])
    assert sorted(each.id for clips in whole.values() for each in clips) == sorted(each.id for each in pool(20))


def test_a_test_set_that_is_there_stays(tmp_path: Path) -> None:
    there = [Clip("x", tmp_path / "x.wav", "a", "x")]
    whole = data.deal({"train": pool(20), "test": there}, data.LABEL, told([]))
    assert whole["test"] == there
    assert len({each.group for each in whole["dev"]}) == 2


def test_too_few_speakers_are_said() -> None:
    said: list[str] = []
    whole = data.deal({"train": pool(3, 20)}, data.LABEL, told(said))
    assert "3 groups are too few" in said[0]
    assert all(whole.values())


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [each for each in pool(20) if each.label == "a"]}, "all recordings to train on are of one class"),
        ({"train": pool(20), "test": [Clip("x", Path("x"), "c", "x")]}, "no recording to train on is of class 'c'"),
        ({"train": pool(1, 1)}, "no recording is left for"),
        ({"test": pool(3)}, "no recording is left for"),
    ],
)
def test_recordings_that_nothing_can_be_learnt_from_are_an_error(splits: data.Splits, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        data.deal(splits, data.LABEL, told([]))


# wrong use
@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        ("Whisper", "ctc", "Whisper has no CTC head.*--task seq2seq"),
        ("Hubert", "seq2seq", "is a hubert without a decoder; pass --task ctc"),
    ],
)
def test_a_head_that_a_family_has_not_is_refused(
    family: str, task: str, message: str, spoken: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        example.main(words(save_base(family, tmp_path / "base"), spoken, task, tmp_path / "run"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--steps", "0"], "total_steps is 0"),
        (["--hold", "0.95"], "shares of all steps"),
        (["--alpha", "1.5"], "alpha"),
        (["--head-only", "1"], "the encoder does not train"),
    ],
)
def test_a_number_that_does_not_fit_is_said_before_training(
    option: list[str], message: str, classes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        example.main(
            [*words(save_base("Hubert", tmp_path / "base"), classes, "classification", tmp_path / "run"), *option]
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "option",
    ["--batch-size 0", "--accumulate 0", "--seconds nan", "--workers -1", "--seed 4294967296", "--learning-rate inf"],
)
def test_a_number_that_nothing_can_be_done_with_is_wrong_usage(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        example.parse([*words("base", Path("data"), "ctc", Path("run")), *option.split()])
    assert ended.value.code == 2
    assert "is not a number from" in capsys.readouterr().err


def settle(base: str, source: Path, out: Path, *more: str) -> None:
    example.remember(example.parse([*words(base, source, "classification", out), *more]))


def test_a_wrong_word_is_put_right_by_the_next_command_until_something_is_made_of_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settle("nowhere", tmp_path / "nowhere", out)
    settle("nowhere", tmp_path / "there", out)
    (out / "train.tsv").touch()
    with pytest.raises(UsageError, match=r"holds a run with data '.*there'; name another"):
        settle("base", tmp_path / "other", out)
    settle("base", tmp_path / "there", out, "--steps", "20")
    (out / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds a run with steps 20; name another"):
        settle("base", tmp_path / "there", out, "--steps", "30")
    settle("base", tmp_path / "there", out, "--steps", "20", "--alpha", "0.5")


def test_settings_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    for content in ("", "[1]"):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(CheckpointError, match="does not hold the settings of a run"):
            settle("base", tmp_path / "data", tmp_path)


def test_what_is_made_does_not_lie_among_the_recordings(classes: Path) -> None:
    with pytest.raises(UsageError, match="lies in the data"):
        settle("base", classes, classes / "run")
    assert not (classes / "run").exists()


def test_a_damaged_base_is_one_line(classes: Path, tmp_path: Path) -> None:
    base = save_base("Hubert", tmp_path / "base")
    with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(CheckpointError, match=r"transformers cannot load \S+/base: .*header.*; give a folder"):
        example.main(words(base, classes, "classification", tmp_path / "run"))


def test_a_base_that_is_not_there_is_one_line(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"transformers cannot load \S+/nowhere"):
        example.main(words(str(tmp_path / "nowhere"), classes, "classification", tmp_path / "run"))
