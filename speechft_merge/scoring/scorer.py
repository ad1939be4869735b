"""Defines what scores models, and what it is given of each: a live model, or one that is written for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from speechft_merge.scoring.scores import Better, Score
    from speechft_merge.similarity.encoders import Encoder
    from speechft_merge.similarity.inputs import InputMaker


class Candidate(Protocol):
    """One model to be scored; what a scorer does not ask for is not made."""

    @property
    def encoder(self) -> Encoder:
        """Its encoder, live, in evaluation mode."""
        ...

    @property
    def inputs(self) -> InputMaker:
        """What makes inputs for the encoder."""
        ...

    @property
    def model(self) -> Any:
        """The whole model of transformers, live, in evaluation mode: with its head."""
        ...

    @property
    def processor(self) -> Any:
        """What transformers' AutoProcessor makes of its files: a tokenizer and a feature extractor, or the latter."""
        ...

    def written(self) -> AbstractContextManager[Path]:
        """Write it as a model directory, which is removed afterwards."""
        ...


class Scorer(Protocol):
    """Scores one model after the other on the same data."""

    @property
    def names(self) -> Mapping[str, Better]:
        """Names of the scores, in their order -> which direction is better; empty where only a first call tells."""
        ...

    notes: Sequence[str]
    """What a reader of the figures must know: of recordings left out, say."""
    needs_model: bool
    """Whether it takes the whole model, with its head."""
    needs_files: bool
    """Whether it takes a model directory."""

    @property
    def description(self) -> dict[str, Any]:
        """What decides about the figures, for JSON: kind, name, command or data by digest. Equal for equal scorers."""
        ...

    def score(self, candidate: Candidate) -> list[Score]:
        """Return the scores of a model.

        Raises:
            SpeechFTMergeError: it cannot be scored.
        """
        ...
