"""Scores a model by its word error rate: of a CTC head or a decoder, both greedy."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError, MismatchError, ScoreError, UsageError, quote
from speechft_merge.packages import require_packages
from speechft_merge.scoring.answers import parse_name
from speechft_merge.scoring.clips import Clip, Recordings, digest, read_table
from speechft_merge.scoring.scores import Better, Score, Unit
from speechft_merge.scoring.transcripts import normalise, read_transcribed
from speechft_merge.similarity.audio import LONGEST, seconds_of
from speechft_merge.similarity.request import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from speechft_merge.scoring.scorer import Candidate
    from speechft_merge.similarity.inputs import Batch

_HEAD = "pass --keep-head, to score the fine-tune's class with its head and its tokenizer"


class WordErrorRate:
    """Scores word errors (substitutions, deletions, insertions) per word of the references, texts normalised alike."""

    needs_model = True
    needs_files = False

    def __init__(self, name: str, clips: Sequence[Clip]) -> None:
        """Check the recordings by their headers; those above 30 s, Whisper's window, or without a word are left out.

        Raises:
            CheckpointError: a file is no audio, or none is left.
        """
        self.name = name
        self.names = {name: Better.LOWER}
        seconds = {clip: seconds_of(clip.path) for clip in clips}
        short = [clip for clip in clips if seconds[clip] <= LONGEST]
        kept = [clip for clip in short if normalise(clip.label)]
        if not kept:
            raise CheckpointError(f"{name} has no recording of up to {LONGEST:g} s with a text of a word or more")
        counts = {f"longer than {LONGEST:g} s": len(clips) - len(short), "without a word": len(short) - len(kept)}
        self.notes: Sequence[str] = [
            f"{name} leaves out recordings {why}: {count} of {len(clips)}" for why, count in counts.items() if count
        ]
        self._recordings = Recordings(kept)
        self._longest = max((seconds[clip], clip.id) for clip in kept)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What decides about the figures."""
        clips = self._recordings.clips
        return {"kind": "wer", "name": self.name, "clips": len(clips), "sha256": digest(clips)}

    def score(self, candidate: Candidate) -> list[Score]:
        """Return the word error rate.

        Raises:
            ScoreError: the model gives no text, has no tokenizer, or too short a window.
            CheckpointError: a file cannot be used, or the model not be run.
            MismatchError: its head gives values that are not numbers.
            DeviceError: the device has not enough memory.
        """
        tokenizer = getattr(candidate.processor, "tokenizer", None)
        if tokenizer is None:
            raise ScoreError(f"{self.name}: the model has no tokenizer", hint=_HEAD)
        window, (seconds, longest) = candidate.inputs.longest, self._longest
        if window is not None and seconds > window / candidate.inputs.rate:
            hears = f"{self.name}: the model hears {window / candidate.inputs.rate:g} s"
            raise ScoreError(f"{hears} of {longest}, which has {seconds:.1f} s", hint="leave longer recordings out")
        heard: dict[int, str] = {}
        for batch, places in self._recordings.batches(candidate.inputs):
            heard |= zip(places, self._transcribe(candidate.model, tokenizer, batch), strict=True)
        units = tuple(
            Unit(clip.id, clip.group, *map(float, count_errors(clip.label, heard[place])))
            for place, clip in enumerate(self._recordings.clips)
        )
        return [Score.of(self.name, Better.LOWER, units)]

    def _transcribe(self, model: Any, tokenizer: Any, batch: Batch) -> list[str]:
        """Return what a model hears in each clip: the best token of each frame, or what it generates."""
        import torch

        from speechft_merge.similarity.encoders import exact_products, running
        from speechft_merge.similarity.filling import quiet

        inputs = {name: values.to(model.device) for name, values in batch.inputs.items()}
        inputs = {
            name: values.to(model.dtype) if values.is_floating_point() else values for name, values in inputs.items()
        }
        named = f"{self.name}: {type(model).__name__}"
        with running(named, model.device), torch.inference_mode(), exact_products(), quiet():
            if type(model).__name__.endswith("ForCTC"):
                # special tokens are not skipped: with them transformers 5 skips the blanks between equal letters
                return [*tokenizer.batch_decode(best_tokens(model(**inputs).logits, batch.frames))]
            if model.can_generate() and model.config.is_encoder_decoder:
                tokens = model.generate(**inputs, **_greedy(model.generation_config))
                return [*tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        raise ScoreError(f"{named} gives no text, as a CTC head or a decoder does", hint=_HEAD)


def parse_wer(text: str) -> WordErrorRate:
    """Parse `PATH` or `NAME=PATH` and look at what lies there: a folder with texts beside the audio, or a table.

    Raises:
        UsageError: it is not of this form, or a package is missing.
        NotFoundError: there is no such folder or table, or a file that belongs to it.
        CheckpointError: see `WordErrorRate`, `read_table`.
    """
    name, path = ("wer", text) if "=" not in text or Path(text).exists() else text.split("=", 1)
    if ":" in name or not path:
        raise UsageError(f"{quote(text)} is not [NAME=]PATH", hint="write it as --wer dev=data/dev")
    name, _ = parse_name(name)
    require_packages(*PACKAGES)
    require_packages("jiwer", extra="score")
    source = Path(path)
    return WordErrorRate(name, read_transcribed(source) if source.is_dir() else read_table(source, "text"))


def count_errors(reference: str, heard: str) -> tuple[int, int]:
    """Return the word errors of a text and the words of its reference, both texts normalised."""
    import jiwer

    found = jiwer.process_words(normalise(reference), normalise(heard))
    errors = found.substitutions + found.deletions + found.insertions
    return errors, found.hits + found.substitutions + found.deletions


def best_tokens(logits: Tensor, frames: Sequence[int] | None) -> list[Tensor]:
    """Return the best token of each frame, clip by clip, without those of padding.

    Args:
        logits: (clips, frames, tokens), also of a head that has fewer frames than the encoder.
        frames: valid ones of each clip at the encoder's output; None for all.

    Raises:
        MismatchError: a value is not a number, so none is best.
    """
    if logits.isnan().any():
        raise MismatchError("the head gives values that are not numbers")
    best = logits.argmax(-1)
    counts = frames or [1] * len(best)
    return [row[: -(-count * len(row) // max(counts))] for row, count in zip(best, counts, strict=True)]


def _greedy(settings: Any) -> dict[str, Any]:
    """Return what to generate with; only a multilingual Whisper can be told the task."""
    return {"do_sample": False, "num_beams": 1} | (
        {"task": "transcribe"} if getattr(settings, "is_multilingual", False) else {}
    )
