"""What an encoder is fine-tuned for: its class with a head, what that is given, and how the Trainer scores it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from examples.stage1.data import LABEL, TEXT
from speechft_merge.errors import CheckpointError, NotFoundError, SpeechFTMergeError, UsageError
from speechft_merge.scoring.clips import Clip
from speechft_merge.scoring.wer import count_errors
from speechft_merge.similarity.inputs import InputMaker

Samples = NDArray[np.float32]
IGNORED = -100
"""What transformers' losses leave out, and what its Trainer pads predictions with."""


class Task:
    """A task of one base: its model, built anew, and all that the Trainer asks of it."""

    column = TEXT
    metric, greater_is_better = "wer", False
    trainer: Any = transformers.Trainer
    settings: Any = transformers.TrainingArguments
    generating: ClassVar[dict[str, Any]] = {}
    """Settings of a Trainer that generates."""
    decoding: ClassVar[dict[str, Any]] = {}
    """How the tokenizer decodes what was predicted."""
    of_labels: ClassVar[dict[str, Any]] = {}
    """How it decodes labels, besides."""

    def __init__(self, base: str, clips: Sequence[Clip], out: Path) -> None:
        with loading(base):
            self.config = transformers.AutoConfig.from_pretrained(base)
            self.extractor = transformers.AutoFeatureExtractor.from_pretrained(base)
        maker = InputMaker(self.config.to_dict(), self.extractor.to_dict())
        self.rate, self._longest = maker.rate, maker.longest
        self.processor: Any = self.extractor
        with loading(base):
            self.model = self.build(base, clips, out)

    def build(self, base: str, clips: Sequence[Clip], out: Path) -> Any:
        """The model with a head for what these recordings are labelled with."""
        raise NotImplementedError

    def targets(self, labels: Sequence[str]) -> torch.Tensor:
        """The labels as the model takes them: (rows, tokens), padded."""
        rows = [torch.tensor(self.processor.tokenizer(label).input_ids) for label in labels]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def collate(self, rows: Sequence[tuple[Samples, str]]) -> dict[str, torch.Tensor]:
        """Rows as one batch."""
        waves, labels = zip(*rows, strict=True)
        window: dict[str, Any] = {"padding": True, "return_attention_mask": True}
        if self._longest is not None:  # Whisper hears a window of one length
            window = {"padding": "max_length", "max_length": self._longest, "truncation": True}
        made = self.extractor(list(waves), sampling_rate=self.rate, return_tensors="pt", **window)
        return {**made, "labels": self.targets(labels)}

    def metrics(self, found: Any) -> dict[str, float]:
        """The score of what was predicted on the development set."""
        tokenizer = self.processor.tokenizer
        heard, said = (
            np.where(ids == IGNORED, tokenizer.pad_token_id, ids) for ids in (found.predictions, found.label_ids)
        )
        counts = [
            count_errors(*texts)
            for texts in zip(
                tokenizer.batch_decode(said, **self.decoding | self.of_labels),
                tokenizer.batch_decode(heard, **self.decoding),
                strict=True,
            )
        ]
        return {self.metric: sum(errors for errors, _ in counts) / max(1, sum(words for _, words in counts))}


class Classification(Task):
    """A class for a whole recording: transformers' pooled mean of the last layer, under a linear head."""

    column = LABEL
    metric, greater_is_better = "accuracy", True

    def build(self, base: str, clips: Sequence[Clip], out: Path) -> Any:
        self.labels = {label: number for number, label in enumerate(sorted({clip.label for clip in clips}))}
        names = {number: label for label, number in self.labels.items()}
        return transformers.AutoModelForAudioClassification.from_pretrained(
            base, num_labels=len(names), label2id=self.labels, id2label=names, ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )  # fmt: skip

    def targets(self, labels: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.labels[label] for label in labels])

    def metrics(self, found: Any) -> dict[str, float]:
        return {self.metric: float((found.predictions.argmax(-1) == found.label_ids).mean())}


class CtcTrainer(transformers.Trainer):  # type: ignore[misc]
    """Predicts the best token of each frame, blanks where a shorter recording is padded."""

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if logits is None:
            return loss, logits, labels
        valid = model._get_feature_vector_attention_mask(logits.shape[1], inputs["attention_mask"])
        return loss, logits.argmax(-1).where(valid.bool(), model.config.pad_token_id), labels


class Ctc(Task):
    """Characters by CTC: a linear head, and a vocabulary of what the transcripts are written with."""

    trainer = CtcTrainer
    of_labels: ClassVar = {"group_tokens": False}

    def build(self, base: str, clips: Sequence[Clip], out: Path) -> Any:
        if self.config.model_type == "whisper":
            raise UsageError(
                "Whisper has no CTC head in transformers, and a decoder of its own",
                hint="train that: --task seq2seq; or the encoder: --task classification",
            )
        letters = sorted({letter for clip in clips for letter in clip.label if letter != " "})
        symbols = ["[PAD]", "[UNK]", "|", *letters]
        path = out / "vocab.json"
        path.write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}, ensure_ascii=False))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(path), unk_token="[UNK]", pad_token="[PAD]")
        bert = self.config.model_type == "wav2vec2-bert"
        joined = transformers.Wav2Vec2BertProcessor if bert else transformers.Wav2Vec2Processor
        self.processor = joined(self.extractor, tokenizer)
        return transformers.AutoModelForCTC.from_pretrained(
            base, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, ctc_loss_reduction="mean",
            ctc_zero_infinity=True, ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip


class Seq2Seq(Task):
    """Text by a model's own decoder: Whisper."""

    trainer = transformers.Seq2SeqTrainer
    settings = transformers.Seq2SeqTrainingArguments
    generating: ClassVar = {"predict_with_generate": True}
    decoding: ClassVar = {"skip_special_tokens": True}

    def build(self, base: str, clips: Sequence[Clip], out: Path) -> Any:
        if self.config.model_type != "whisper":
            raise UsageError(f"{base} is a {self.config.model_type} without a decoder", hint="pass --task ctc")
        self.processor = transformers.AutoProcessor.from_pretrained(base)
        return transformers.AutoModelForSpeechSeq2Seq.from_pretrained(base, dtype=torch.float32)

    def targets(self, labels: Sequence[str]) -> torch.Tensor:
        """Without the first token: the model puts it before them."""
        return super().targets(labels)[:, 1:]


TASKS: dict[str, type[Task]] = {"classification": Classification, "ctc": Ctc, "seq2seq": Seq2Seq}


@contextlib.contextmanager
def loading(base: str) -> Iterator[None]:
    """Say in one line what transformers says in fifty."""
    try:
        yield
    except SpeechFTMergeError:
        raise
    except Exception as error:  # a damaged file raises what its format's library likes
        kind = NotFoundError if isinstance(error, OSError) else CheckpointError
        reason, _, _ = str(error).partition("\n")
        hint = "give a folder of transformers, with its preprocessor_config.json, or its id on the Hub"
        raise kind(f"transformers cannot load {base}: {reason}", hint=hint) from error
