"""Word error rate: texts and their errors against hand counts, models against their own processors' greedy decoding."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import soundfile
import torch
from candidates import Given
from hypothesis import given
from hypothesis import strategies as st
from models import build, fine_tune, transformers
from tokenizers.pre_tokenizers import ByteLevel

from speechft_merge.bench import SweepRequest
from speechft_merge.errors import CheckpointError, MismatchError, NotFoundError, ScoreError, UsageError
from speechft_merge.merging import merge
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.scoring.scores import Better
from speechft_merge.scoring.transcripts import normalise, read_transcribed
from speechft_merge.scoring.wer import best_tokens, count_errors, parse_wer
from speechft_merge.similarity.inputs import InputMaker
from speechft_merge.similarity.probe import BUILT_IN
from speechft_merge.sweep.folder import SweepFolder
from speechft_merge.sweep.grid import lay_out
from speechft_merge.sweeping import sweep

if TYPE_CHECKING:
    from conftest import WriteAudio

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello,  World!", "hello world"),
        ("It's the dogs' 'bone'", "it's the dogs bone"),
        ("don\u2019t  \u201cstop\u201d\u2026", "don't stop"),
        ("well-known U.S. rock'n'roll", "well known u s rock'n'roll"),
        ("Stra\u00dfe \ufb01n \uff21", "strasse fin a"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),
        ("5 $ + 3 %", "5 3"),
        ("' - ...", ""),
    ],
)
def test_texts_are_normalised(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text())
def test_a_normal_text_stays_as_it_is(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("reference", "heard", "errors", "words"),
    [
        ("Go forward ten meters.", "go forward ten meters", 0, 4),
        ("go forward ten meters", "", 4, 4),
        ("go forward ten meters", "so forward meters", 2, 4),
        ("go forward", "go for word ten", 3, 2),
        ("a", "b c d e", 4, 1),
    ],
)
def test_errors_are_counted_as_by_hand(reference: str, heard: str, errors: int, words: int) -> None:
    assert count_errors(reference, heard) == (errors, words)


def edits(reference: list[str], heard: list[str]) -> int:
    """Levenshtein's distance, row by row."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        before, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


WORDS = st.lists(st.sampled_from("abc"), max_size=8)


@given(WORDS.filter(bool), WORDS)
def test_errors_are_the_least_edits(reference: list[str], heard: list[str]) -> None:
    assert count_errors(" ".join(reference), " ".join(heard)) == (edits(reference, heard), len(reference))


# Models.


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Real speech with texts beside it, of words as short as a random model's."""
    folder = tmp_path / "spoken"
    folder.mkdir()
    for number, path in enumerate(sorted(BUILT_IN.glob("*.flac"))[:6]):
        shutil.copy(path, folder)
        (folder / path.name).with_suffix(".txt").write_text(f"Go, {'a b ' * number}I't.\n")
    return folder


@pytest.fixture
def ctc_processor(tmp_path: Path) -> Any:
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    tokenizer = transformers().Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    return transformers().Wav2Vec2Processor(
        transformers().Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer
    )


SPECIAL = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]


@pytest.fixture
def whisper_processor(tmp_path: Path) -> Any:
    """Whose tokenizer has a token a byte, and Whisper's special ones."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = transformers().WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return transformers().WhisperProcessor(transformers().WhisperFeatureExtractor(feature_size=8), tokenizer)


def build_whisper(tokenizer: Any, *, multilingual: bool) -> Any:
    """A model with random weights, and settings for generation as OpenAI's have them."""
    end, *special = (tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.eos_token, *SPECIAL))
    ends = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end, "decoder_start_token_id": special[0]}
    sizes = {"max_source_positions": 1500, "max_target_positions": 40, "vocab_size": len(tokenizer)}
    model = build("Whisper", "ForConditionalGeneration", **sizes, **ends)
    model.proj_out.weight.data.mul_(20)  # so that what is generated differs from clip to clip
    codes = dict(zip(SPECIAL, special, strict=True))
    languages = {"lang_to_id": {name: codes[name] for name in ("<|en|>", "<|de|>")}} if multilingual else {}
    tasks = {"task_to_id": {name: codes[f"<|{name}|>"] for name in ("translate", "transcribe")}} if multilingual else {}
    model.generation_config = transformers().GenerationConfig(
        max_length=40, no_timestamps_token_id=special[-1], is_multilingual=multilingual, suppress_tokens=special,
        **ends, **languages, **tasks,
    )  # fmt: skip
    return model


def by_hand(folder: Path, transcribe: Any) -> tuple[list[int], list[int]]:
    """Errors and words of each recording, by Levenshtein's distance of normalised words."""
    errors, words = [], []
    for path in sorted(folder.glob("*.flac")):
        reference = normalise(path.with_suffix(".txt").read_text()).split()
        errors.append(edits(reference, normalise(transcribe(soundfile.read(path, dtype="float32")[0])).split()))
        words.append(len(reference))
    return errors, words


@pytest.mark.parametrize("config", [{}, LARGE], ids=["alone", "in batches"])
def test_a_ctc_model_is_read_as_its_processor_reads_it(
    config: dict[str, Any], spoken: Path, ctc_processor: Any
) -> None:
    model = build("Wav2Vec2", "ForCTC", vocab_size=len(LETTERS), **config)
    model.lm_head.weight.data *= 20  # random logits that differ from frame to frame

    def transcribe(samples: Any) -> str:
        made = ctc_processor(samples, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            logits = model(made.input_values).logits
        (text,) = ctc_processor.batch_decode(logits.argmax(-1))
        return str(text)

    errors, words = by_hand(spoken, transcribe)
    inputs = InputMaker(model.config.to_dict(), ctc_processor.feature_extractor.to_dict())
    scorer = parse_wer(f"dev={spoken}")
    (score,) = scorer.score(Given(model=model, processor=ctc_processor, inputs=inputs))
    assert (score.name, score.better) == ("dev", Better.LOWER)
    assert [(unit.amount, unit.total) for unit in score.units] == [*zip(errors, words, strict=True)]
    assert score.value == pytest.approx(sum(errors) / sum(words))
    assert len({*errors}) > 1


def test_a_ctc_head_that_spells_a_text_reads_it_back(
    write_audio: WriteAudio, ctc_processor: Any, tmp_path: Path
) -> None:
    """Blanks part equal letters, repeated frames are one letter, and frames of padding are not read."""
    for name, seconds in (("a", 0.6), ("b", 0.9)):
        write_audio(f"in/{name}.wav", seconds).with_suffix(".txt").write_text("Hello, all")
    model = build("Wav2Vec2", "ForCTC", vocab_size=len(LETTERS), **LARGE)
    tokens = [LETTERS.index(letter) for letter in ["h", "h", "e", "l", "<pad>", "l", "o", "|", "a", "l", "<pad>", "l"]]

    def spell(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(logits)
        made[:, :, 0] = 1  # blank
        made[:, range(len(tokens)), tokens] = 2
        made[0, 29:, 5] = 3  # the shorter clip has 29 frames
        return made

    model.lm_head.register_forward_hook(spell)
    inputs = InputMaker(model.config.to_dict(), ctc_processor.feature_extractor.to_dict())
    (score,) = parse_wer(str(tmp_path / "in")).score(Given(model=model, processor=ctc_processor, inputs=inputs))
    assert (score.name, score.value, [unit.total for unit in score.units]) == ("wer", 0.0, [2, 2])


@pytest.mark.parametrize("multilingual", [False, True], ids=["English", "multilingual"])
def test_a_whisper_transcribes_as_by_its_processor(multilingual: bool, spoken: Path, whisper_processor: Any) -> None:
    model = build_whisper(whisper_processor.tokenizer, multilingual=multilingual)
    asked = {"task": "transcribe"} if multilingual else {}

    def transcribe(samples: Any) -> str:
        made = whisper_processor(samples, sampling_rate=16_000, return_tensors="pt")
        tokens = model.generate(made.input_features, do_sample=False, num_beams=1, **asked)
        return str(whisper_processor.batch_decode(tokens, skip_special_tokens=True)[0])

    errors, words = by_hand(spoken, transcribe)
    prompts = []

    def keep(_: object, __: object, given: Any) -> None:
        prompts.append(whisper_processor.tokenizer.decode(given["input_ids"][0]))

    model.model.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    inputs = InputMaker(model.config.to_dict(), whisper_processor.feature_extractor.to_dict())
    (score,) = parse_wer(str(spoken)).score(Given(model=model, processor=whisper_processor, inputs=inputs))
    assert [(unit.amount, unit.total) for unit in score.units] == [*zip(errors, words, strict=True)]
    assert all("<|translate|>" not in prompt for prompt in prompts)
    assert any(prompt.endswith("<|transcribe|><|notimestamps|>") for prompt in prompts) is multilingual


def test_a_window_shorter_than_a_recording_is_refused(spoken: Path, whisper_processor: Any) -> None:
    """What lies beyond it would count as errors."""
    model = build("Whisper", "ForConditionalGeneration", max_source_positions=50)
    inputs = InputMaker(model.config.to_dict(), {})
    with pytest.raises(ScoreError, match=r"wer: the model hears 1 s of .*-2\.flac, which has \d\.\d s"):
        parse_wer(str(spoken)).score(Given(model=model, processor=whisper_processor, inputs=inputs))


def test_frames_of_a_head_that_has_fewer_are_cut_in_proportion() -> None:
    """As an adapter of stride two leaves 25 of 49 frames."""
    logits = torch.zeros(2, 25, 3)
    assert [len(row) for row in best_tokens(logits, [20, 49])] == [11, 25]
    assert [len(row) for row in best_tokens(logits, None)] == [25, 25]


def test_a_head_that_gives_no_numbers_has_no_error_rate() -> None:
    with pytest.raises(MismatchError, match="not numbers"):
        best_tokens(torch.tensor([[[0.0, torch.nan]]]), None)


def test_a_model_without_a_head_or_a_tokenizer_is_told_what_to_pass(spoken: Path, ctc_processor: Any) -> None:
    bare = build("Hubert")
    inputs = InputMaker(bare.config.to_dict(), {})
    scorer = parse_wer(str(spoken))
    with pytest.raises(ScoreError, match=r"HubertModel gives no text.*--keep-head"):
        scorer.score(Given(model=bare, processor=ctc_processor, inputs=inputs))
    with pytest.raises(ScoreError, match=r"has no tokenizer.*--keep-head"):
        scorer.score(Given(model=bare, processor=ctc_processor.feature_extractor, inputs=inputs))


# Data.


def test_librispeech_is_read_with_its_speakers(write_audio: WriteAudio, tmp_path: Path) -> None:
    for name in ("84-121123-0000", "84-121123-0001", "1272-128104-0000"):
        speaker, chapter, _ = name.split("-")
        write_audio(f"dev/{speaker}/{chapter}/{name}.flac")
    (tmp_path / "dev/84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001 AND ON\n")
    (tmp_path / "dev/1272/128104/1272-128104.trans.txt").write_text("1272-128104-0000 STOP\n")
    assert [(clip.id, clip.label, clip.group) for clip in read_transcribed(tmp_path / "dev")] == [
        ("1272/128104/1272-128104-0000.flac", "STOP", "1272"),
        ("84/121123/84-121123-0000.flac", "GO ON", "84"),
        ("84/121123/84-121123-0001.flac", "AND ON", "84"),
    ]


def test_elsewhere_the_group_is_the_folder_if_there_are_several_else_the_file(
    write_audio: WriteAudio, tmp_path: Path
) -> None:
    for name in ("one/a.wav", "one/b.wav"):
        write_audio(name).with_suffix(".txt").write_text("hello")
    assert [clip.group for clip in read_transcribed(tmp_path / "one")] == ["a.wav", "b.wav"]
    write_audio("one/two/c.wav").with_suffix(".txt").write_text("hello")
    assert [clip.group for clip in read_transcribed(tmp_path / "one")] == [".", ".", "two"]


def test_what_has_no_words_or_is_too_long_is_left_out_and_counted(write_audio: WriteAudio, tmp_path: Path) -> None:
    for name, seconds, text in (("a", 0.5, "hello"), ("b", 0.5, " ... "), ("c", 0.5, ""), ("d", 31, "hello")):
        write_audio(f"in/{name}.wav", seconds, 8_000).with_suffix(".txt").write_text(text)
    scorer = parse_wer(str(tmp_path / "in"))
    assert scorer.notes == [
        "wer leaves out recordings longer than 30 s: 1 of 4",
        "wer leaves out recordings without a word: 2 of 4",
    ]
    assert scorer.description["clips"] == 1
    (tmp_path / "in/a.txt").write_text("-")
    with pytest.raises(CheckpointError, match="no recording of up to 30 s with a text of a word"):
        parse_wer(str(tmp_path / "in"))


def test_equal_data_have_equal_descriptions(write_audio: WriteAudio, tmp_path: Path) -> None:
    text = write_audio("in/a.wav").with_suffix(".txt")
    text.write_text("hello")
    before = parse_wer(f"dev={tmp_path / 'in'}").description
    assert parse_wer(f"dev={tmp_path / 'in'}").description == before
    text.write_text("goodbye")
    assert parse_wer(f"dev={tmp_path / 'in'}").description != before


def test_what_is_not_there_is_named(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("in/a.wav")
    with pytest.raises(NotFoundError, match=r"1 of 1 audio files have no text beside them, .*a\.wav.*into a\.txt"):
        parse_wer(str(tmp_path / "in"))
    (tmp_path / "in/a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"a\.txt cannot be read as UTF-8"):
        parse_wer(str(tmp_path / "in"))
    for text in ("", "wer=", "wer:lower=in", "a b=in"):
        with pytest.raises(UsageError):
            parse_wer(text)
    with pytest.raises(NotFoundError, match="there is no file or folder"):
        parse_wer("missing")


@pytest.mark.parametrize("family", ["Wav2Vec2", "Whisper"])
def test_each_cell_of_a_sweep_reads_as_the_folder_of_its_merge(
    family: str, spoken: Path, ctc_processor: Any, whisper_processor: Any, tmp_path: Path
) -> None:
    if family == "Whisper":
        base = build_whisper(whisper_processor.tokenizer, multilingual=True)
        finetuned, processor = copy.deepcopy(base), whisper_processor
        torch.manual_seed(1)
        for name, weight in finetuned.named_parameters():
            if "layers" in name:
                weight.data += 0.05 * torch.randn_like(weight)
    else:
        base, processor = build("Wav2Vec2"), ctc_processor
        finetuned = fine_tune(base, "Wav2Vec2", "ForCTC", vocab_size=len(LETTERS))
        finetuned.lm_head.weight.data *= 20
    for model, side in ((base, "base"), (finetuned, "finetuned")):
        model.save_pretrained(tmp_path / side)
        processor.save_pretrained(tmp_path / side)
    models, cells, keep_head = (
        (str(tmp_path / "base"), str(tmp_path / "finetuned")),
        lay_out([0.5]),
        family != "Whisper",
    )
    scorer = parse_wer(f"dev={spoken}")
    request = SweepRequest(cells, Recipe(keep_head=keep_head), [scorer], probe=None)
    sweep(*models, tmp_path / "sweep", request)
    found = {result.cell: result.scores[0] for result in SweepFolder(tmp_path / "sweep").results(cells)}
    for cell in cells:
        out = tmp_path / f"merged{cell.alpha}"
        merge(*models, out, Recipe(alpha=cell.alpha, keep_head=keep_head))
        written = type(finetuned).from_pretrained(out).eval()
        inputs = InputMaker(written.config.to_dict(), processor.feature_extractor.to_dict())
        (expected,) = scorer.score(Given(model=written, processor=processor, inputs=inputs))
        assert found[cell] == expected
