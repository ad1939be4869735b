"""A probe task on real speech, against plain code over transformers' hidden states; and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
from candidates import PAIR, Given, encoder_of
from models import build, transformers
from numpy.typing import NDArray

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError
from speechft_merge.scoring.clips import read_table
from speechft_merge.scoring.probe_task import parse_probe_task, read_classes
from speechft_merge.similarity.inputs import InputMaker
from speechft_merge.similarity.probe import BUILT_IN

if TYPE_CHECKING:
    from conftest import WriteAudio

Array = NDArray[np.float64]


@pytest.fixture
def languages(tmp_path: Path) -> Path:
    """The built-in probe by language; a group is a recording series."""
    for path in BUILT_IN.glob("*.flac"):
        language, series, _ = path.stem.split("-")
        folder = tmp_path / "languages" / language / (series if language in ("en", "ru") else path.stem)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return tmp_path / "languages"


def pooled(paths: list[Path]) -> list[Array]:
    """Of each layer, means over frames of transformers' own hidden states: (clips, width)."""
    model = transformers().HubertModel.from_pretrained(PAIR / "base", dtype=torch.float32).eval()
    extract = transformers().Wav2Vec2FeatureExtractor.from_pretrained(PAIR / "base")
    rows = []
    for path in paths:
        made = extract(soundfile.read(path, dtype="float32")[0], sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            states = model(made.input_values, output_hidden_states=True).hidden_states
        rows.append([state[0].double().mean(0).numpy() for state in states])
    return [np.stack(layer) for layer in zip(*rows, strict=True)]


def test_accuracy_is_that_of_a_primal_ridge_on_transformers_own_features(languages: Path, shipped: Given) -> None:
    task = parse_probe_task(f"language={languages}")
    both = task.score(shipped)
    assert [score.name for score in both] == [*task.names] == ["language", "language.last"]
    clips = read_classes(languages)
    layers = pooled([clip.path for clip in clips])
    labels = np.array([clip.label for clip in clips])
    targets = (labels[:, None] == sorted({*labels})).astype(float)
    for score, chosen in zip(both, (layers, layers[-1:]), strict=True):
        assert [(unit.id, unit.group) for unit in score.units] == [(clip.id, clip.group) for clip in clips]
        for row, unit in enumerate(score.units):
            fitted = np.array(task._folds) != task._folds[row]
            x = np.hstack([layer / np.sqrt(layer[fitted].var(0).sum()) for layer in chosen])
            assert unit.amount == targets[row, guess(x, targets, fitted, row)]


def test_languages_are_told_apart_where_each_clip_is_a_group(languages: Path, shipped: Given) -> None:
    """More often than by chance, one in four: voices of each language are fitted and tested."""
    table = languages / "all.tsv"
    table.write_text("".join(f"{clip.id}\t{clip.label}\n" for clip in read_classes(languages)))
    assert all(score.value > 0.5 for score in parse_probe_task(f"language={table}").score(shipped))


def guess(x: Array, y: Array, fitted: Array, row: int) -> int:
    """The class of one row by ridge regression; its strength is chosen by refitting without each row."""

    def predict(rows: Array, at: Array, penalty: float) -> Array:
        mean = x[rows].mean(0)
        moved = x[rows] - mean
        dual = np.linalg.solve(moved @ moved.T + penalty * np.eye(len(moved)), y[rows] - y[rows].mean(0))
        return (at - mean) @ moved.T @ dual + y[rows].mean(0)

    rows = np.flatnonzero(fitted)
    scale = x[rows].var(0).sum()
    errors = {
        strength: sum(np.square(y[one] - predict(rows[rows != one], x[one], strength * scale)).sum() for one in rows)
        for strength in 10.0 ** np.arange(2, -5, -1)
    }
    best = min(errors, key=lambda strength: errors[strength])
    return int(predict(rows, x[row], best * scale).argmax())


def test_a_score_is_the_same_every_time_and_for_a_table_in_any_order(languages: Path, shipped: Given) -> None:
    lines = [f"{clip.path.relative_to(languages)}\t{clip.label}\t{clip.group}" for clip in read_classes(languages)]
    table, reverse = languages / "all.tsv", languages / "reverse.tsv"
    table.write_text("\n".join(lines) + "\n")
    reverse.write_text("\ufeffpath\tlabel\tgroup\r\n" + "\r\n".join(reversed(lines)), encoding="utf-8")
    tasks = [parse_probe_task(f"language={path}") for path in (table, reverse, table)]
    scores = [task.score(shipped) for task in tasks]
    assert scores[0] == scores[1] == scores[2] == tasks[0].score(shipped)
    assert tasks[0].description == tasks[1].description
    table.write_text("\n".join(lines[1:]))
    assert parse_probe_task(f"language={table}").description != tasks[0].description


@pytest.mark.parametrize("family", ["Hubert", "Whisper"])
def test_clips_of_a_batch_keep_their_places(family: str, languages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where batches are sorted by length, features go back to their clips: as one clip at a time gives them."""
    settings = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if family == "Hubert" else {}
    sizes = {} if family == "Hubert" else {"max_source_positions": 1500}
    model = build(family, **settings, **sizes)
    encoder = encoder_of(model.encoder if family == "Whisper" else model)
    task = parse_probe_task(f"language={languages}")
    maker = InputMaker(model.config.to_dict(), {})
    together = task._features(Given(encoder=encoder, inputs=maker))
    assert maker.batches_alike is (family == "Hubert")
    monkeypatch.setattr("speechft_merge.similarity.inputs.BATCH_SECONDS", 0.1)
    alone = task._features(Given(encoder=encoder, inputs=InputMaker(model.config.to_dict(), {})))
    (batch,) = maker.batches([soundfile.read(read_classes(languages)[5].path, dtype="float32")[0]])
    for ours, theirs, state in zip(together, alone, encoder.run(batch)[0].values(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert ours[5] == pytest.approx(state.double().mean(0).numpy(), abs=1e-4)


def test_inputs_are_made_once_for_all_models_that_take_the_same(
    languages: Path, shipped: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = parse_probe_task(f"language={languages}")
    first = task.score(shipped)
    shutil.rmtree(languages)
    assert task.score(shipped) == first


def test_a_group_is_the_folder_in_a_class_or_the_file(write_audio: WriteAudio, tmp_path: Path) -> None:
    for name in ("yes/anna/1/a.wav", "yes/anna/b.wav", "yes/c.wav", "no/anna/d.wav", "no/e.flac", ".git/f.wav"):
        write_audio(f"words/{name}")
    clips = read_classes(tmp_path / "words")
    assert [(clip.id, clip.label, clip.group) for clip in clips] == [
        ("no/anna/d.wav", "no", "anna"),
        ("no/e.flac", "no", "no/e.flac"),
        ("yes/anna/1/a.wav", "yes", "anna"),
        ("yes/anna/b.wav", "yes", "anna"),
        ("yes/c.wav", "yes", "yes/c.wav"),
    ]


def test_a_clip_above_thirty_seconds_is_cut_and_counted(write_audio: WriteAudio, tmp_path: Path) -> None:
    for number in range(10):
        write_audio(f"words/{number % 2}/{number}.wav", 0.1)
    write_audio("words/1/long.wav", 31, 8_000)
    task = parse_probe_task(f"words={tmp_path / 'words'}")
    assert task.notes == ["words takes the first 30 s of clips that are longer: 1 of 11"]
    batches = task._recordings.batches(InputMaker({"model_type": "hubert"}, {}))
    assert max(batch.inputs["input_values"].shape[1] for batch, _ in batches) == 30 * 16_000


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ({"a": 9}, "has 9 clips, at least 10"),
        ({"a": 12}, "has one class alone, 'a'"),
        ({"a": 12, "b": 1}, "all of class 'b' is in the group 'b/0.wav'"),
    ],
    ids=str,
)
def test_too_little_to_measure_is_refused(
    classes: dict[str, int], told: str, write_audio: WriteAudio, tmp_path: Path
) -> None:
    for label, count in classes.items():
        for number in range(count):
            write_audio(f"words/{label}/{number}.wav", 0.1)
    with pytest.raises(CheckpointError, match=told):
        parse_probe_task(f"words={tmp_path / 'words'}")


def test_audio_that_is_none_is_named_before_any_model(write_audio: WriteAudio, tmp_path: Path) -> None:
    for number in range(12):
        write_audio(f"words/{number % 2}/{number}.wav", 0.1)
    (tmp_path / "words/1/broken.wav").write_text("hello")
    with pytest.raises(CheckpointError, match=r"words/1/broken\.wav cannot be read"):
        parse_probe_task(f"words={tmp_path / 'words'}")
    (tmp_path / "words/1/broken.wav").unlink()
    write_audio("words/1/short.wav", 0.001)
    task = parse_probe_task(f"words={tmp_path / 'words'}")
    config = build("Hubert").config.to_dict()
    with pytest.raises(CheckpointError, match=r"short\.wav is too short for one frame"):
        task.score(Given(inputs=InputMaker(config, {})))


def test_what_is_not_there_or_lies_elsewhere_is_named(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("words/a.wav")
    with pytest.raises(CheckpointError, match=r"words/a\.wav lies in no class"):
        read_classes(tmp_path / "words")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no folder of audio files"):
        read_classes(tmp_path / "empty")
    with pytest.raises(NotFoundError, match="there is no file or folder"):
        parse_probe_task(f"words={tmp_path / 'missing'}")
    for text in ("words", "words=", "=words", "words:lower=words", "a-b=words"):
        with pytest.raises(UsageError):
            parse_probe_task(text)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a.wav", r"t\.tsv, line 3 is not path<TAB>label<TAB>group"),
        ("a.wav\t", "line 3 is not"),
        ("\tx", "line 3 is not"),
        ("b.wav\tx\tanna", "line 3 is not"),
        ("a.wav\ty", r"line 3: 'a\.wav' occurs twice"),
        ("b.wav\ty", r"t\.tsv: 1 of 2 files do not exist, first 'b\.wav'"),
    ],
)
def test_a_wrong_line_of_a_table_is_named(line: str, told: str, write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("a.wav")
    (tmp_path / "t.tsv").write_text(f"a.wav\tx\n\n{line}\n")
    with pytest.raises((CheckpointError, NotFoundError), match=told):
        read_table(tmp_path / "t.tsv", "label")


def test_a_table_without_groups_has_each_clip_for_its_own(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("in/a.wav")
    absolute = write_audio("in/b.wav")
    (tmp_path / "t.tsv").write_text(f"in/a.wav\tx\n{absolute}\ty\n")
    clips = {clip.label: clip for clip in read_table(tmp_path / "t.tsv", "label")}
    assert Counter(clip.group for clip in clips.values()) == {"in/a.wav": 1, str(absolute): 1}
    assert clips["x"].path.samefile(tmp_path / "in/a.wav")
