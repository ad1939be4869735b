"""Tells which part of a list of independent items a process does: by `i/n`, or variables of a scheduler. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from speechft_merge.errors import UsageError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_Item = TypeVar("_Item")

_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""torchrun's, within srun's; a batch shell has the last two as well."""


@dataclass(frozen=True, slots=True)
class Share:
    """The share `index` of `count` equal ones, counted from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"{self} is not a share of the work", hint="shares are counted from 0: 0/n to (n-1)/n")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that `3/8` names: the fourth of eight.

        Raises:
            UsageError: it names none.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if not found:
            raise UsageError(
                f"{quote(text)} is not a share of the work", hint="write i/n, such as 0/8 for the first of 8"
            )
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Share:
        """Return the share of this process among all that were started with it.

        The elements of a Slurm job array, and within each of them the processes that torchrun or else srun started:
        with 4 elements of 2 processes each, the second process of the third element has share 5/8.

        Raises:
            UsageError: nothing tells, or the array has gaps.
        """
        levels = [level for level in (_array_share(environ), _rank_share(environ)) if level]
        if not levels:
            looked_for = ", ".join(f"{index} and {count}" for index, count in _RANKS)
            raise UsageError(
                "no variable tells the share of this process",
                hint=f"needed is one of SLURM_ARRAY_TASK_ID, {looked_for}; or pass --task i/n",
            )
        share = levels[0]
        for inner in levels[1:]:
            share = cls(share.index * inner.count + inner.index, share.count * inner.count)
        return share

    def of(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return every `count`-th of the items, from number `index`."""
        return items[self.index :: self.count]


def _array_share(environ: Mapping[str, str]) -> Share | None:
    """Return an element's place in its job array, if there is one: `--array=4-10:3` has the places of 4, 7 and 10."""
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return None
    element, count = (_number(environ, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    first, step = (_number(environ, f"SLURM_ARRAY_TASK_{name}", usual) for name, usual in (("MIN", 0), ("STEP", 1)))
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", first + (count - 1) * step)
    if (element - first) % step or (last - first) // step + 1 != count:  # Slurm tells of `--array=3,5` only the ends
        raise UsageError(
            "the elements of the job array are not evenly spaced, so none can tell its place",
            found=f"{count} from {first} to {last}",
            hint=f"submit --array=0-{count - 1}: what is done already is skipped",
        )
    return Share((element - first) // step, count)


def _rank_share(environ: Mapping[str, str]) -> Share | None:
    shell = "SLURM_JOB_ID" in environ and "SLURM_STEP_NUM_TASKS" not in environ  # a batch shell is only one process
    for index, count in _RANKS:
        if index in environ and count in environ and not (shell and index == "SLURM_PROCID"):
            return Share(_number(environ, index), _number(environ, count))
    return None


def _number(environ: Mapping[str, str], name: str, usual: int | None = None) -> int:
    text = environ.get(name, "" if usual is None else str(usual))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UsageError(f"the variable {name} is not a number", found=quote(text), hint="pass --task i/n")
    return int(text)
