"""What is run, in which order: fine-tunes by several recipes, and the points at which each is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from examples.finetune import Recipe

TINY, LARGER = "whisper-tiny.en", "whisper-base"
SEEDS = range(5)
BASE = "base"
"""In the place of a recipe: the encoder before any fine-tune."""

_PHONES = Recipe(rate=1.5e-3, steps=250, rows=24)
_SPEAKER = Recipe(rate=2e-4, steps=400, rows=32)
RECIPES = {
    "A": {
        "hot": replace(_PHONES, keep=(50, 100, 150)),
        "gentle": replace(_PHONES, rate=6e-4),
        "short": replace(_PHONES, rate=6e-4, steps=100),
        "stage 1": replace(_PHONES, rate=4e-4, stage1=True),
        "L2": replace(_PHONES, pull=10.0),
        "top": replace(_PHONES, top=2),
    },
    "B": {"hot": _SPEAKER, "stage 1": replace(_SPEAKER, stage1=True)},
}
"""Pair -> name -> recipe."""
CHANGES: dict[str, dict[str, Any]] = {LARGER: {"rate": 1e-3, "steps": 150, "keep": ()}}
"""What is another for a model."""

Point = tuple[int | None, float]
"""The steps that a fine-tune has had, None for all, and the alpha of its merge with the base."""
ENDS: tuple[Point, ...] = ((None, 1.0), (None, 0.25))
CURVE: tuple[Point, ...] = ((None, 0.5), (None, 0.1), (None, 0.75))
STOPPED: tuple[Point, ...] = ((100, 1.0), (50, 1.0), (150, 1.0))
OTHERS: dict[str, tuple[Point, ...]] = {
    "gentle": ENDS,
    "short": ENDS[:1],
    "L2": ENDS[:1],
    "top": ENDS[:1],
}
"""What the main run is compared with: a gentler and a shorter one, and two that keep near the base otherwise."""


@dataclass(frozen=True)
class Job:
    """One fine-tune, or a base, and where it is measured."""

    model: str
    pair: str
    recipe: str
    seed: int = 0
    points: tuple[Point, ...] = ENDS

    @property
    def key(self) -> dict[str, Any]:
        """Of its records in a journal."""
        return {"model": self.model, "pair": self.pair, "recipe": self.recipe, "seed": self.seed}

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(map(str, self.key.values())).replace(" ", "_")

    @property
    def how(self) -> Recipe:
        """The recipe of a fine-tune."""
        return replace(RECIPES[self.pair][self.recipe], **CHANGES.get(self.model, {}))


def base(model: str, pair: str) -> Job:
    """The job that measures an encoder before any fine-tune."""
    return Job(model, pair, BASE, points=((None, 0.0),))


def seeds(pair: str, recipe: str, points: tuple[Point, ...] = ENDS) -> list[Job]:
    """The fine-tunes of the smaller model by one recipe."""
    return [Job(TINY, pair, recipe, seed, points) for seed in SEEDS]


def beside(seed: int) -> list[Job]:
    """What the main run of pair A is compared with: other recipes, and other alphas."""
    others = [Job(TINY, "A", recipe, seed, points) for recipe, points in OTHERS.items()]
    return [*others, Job(TINY, "A", "hot", seed, CURVE)]


FULL = [
    base(TINY, "A"),
    *seeds("A", "hot"),
    base(TINY, "B"),
    *seeds("B", "hot"),
    *seeds("A", "hot", STOPPED[:1]),
    base(LARGER, "A"),
    *(Job(LARGER, "A", "hot", seed) for seed in SEEDS[:3]),
    *seeds("A", "stage 1"),
    *(job for seed in SEEDS for job in beside(seed)),
    *(Job(LARGER, "A", "hot", seed) for seed in SEEDS),
    *seeds("A", "hot", STOPPED),
    *seeds("B", "hot", CURVE),
    *seeds("B", "stage 1"),
]
"""The most telling first: what a run that is stopped has, is of use."""
QUICK = [base(TINY, "A"), Job(TINY, "A", "hot", 0, (*ENDS, (100, 1.0)))]
