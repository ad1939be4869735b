"""Defines the evidence for a recipe that a sweep chose, as a merge records it: in its manifest and its card. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from speechft_merge.foreign import as_markdown

SECTION = "## Why this alpha"


@dataclass(frozen=True, slots=True)
class Figure:
    """A score of one model, with its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def cell(self) -> str:
        """As a table shows it."""
        if self.value is None:
            return "-"
        return f"{self.value:.4g}" + (
            "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """One score of the base, of what was chosen and of the fine-tune."""

    name: str
    better: str
    """`higher` or `lower`."""
    base: Figure
    pick: Figure
    finetuned: Figure


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a recipe was chosen."""

    rule: str
    """What decided."""
    scores: tuple[Measured, ...]
    words: tuple[str, ...]
    """Sentences on the decision."""
    end: str = "the fine-tune"
    """What alpha 1 is called."""

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest has of it."""
        return {"rule": self.rule, "scores": [asdict(score) for score in self.scores], "words": [*self.words]}

    def section(self) -> list[str]:
        """Return the lines of the card's section, in Markdown."""
        rows = [
            [
                f"{score.name} ({score.better} is better)",
                *(figure.cell for figure in (score.base, score.pick, score.finetuned)),
            ]
            for score in self.scores
        ]
        table = [["score", "the base", "this merge", self.end], ["---"] * 4, *rows]
        told = any(score.pick.low is not None for score in self.scores)
        return [
            SECTION,
            "",
            as_markdown(f"Chosen by a sweep: {self.rule}. " + " ".join(self.words)),
            "",
            *("| " + " | ".join(map(as_markdown, row)) + " |" for row in (table if rows else [])),
            "",
            *(["In brackets: 95 % intervals.", ""] if told else []),
        ]

    def model_index(self, name: str, task: str | None) -> list[str]:
        """Return the lines of a card's front matter that tell the Hub the scores.

        Args:
            name: of the model.
            task: the Hub's name of its task.
        """
        if not self.scores:
            return []
        lines = ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        for score in self.scores:
            if score.pick.value is not None:
                quoted = json.dumps(score.name)
                lines += [
                    f"  - task: {{type: {task or 'audio-classification'}}}",
                    f"    dataset: {{type: {quoted}, name: {quoted}}}",
                    f"    metrics: [{{type: {quoted}, name: {quoted}, value: {score.pick.value!r}}}]",
                ]
        return lines
