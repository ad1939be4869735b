"""Lays out the cells of a sweep: alphas times tilts times values of rules, the end points always among them. Pure."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.arguments import listed, require
from speechft_merge.errors import UsageError, quote
from speechft_merge.recipe.alpha import parse_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST = 10_000
"""Most cells of a sweep: beyond it an option is mistyped."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One merge of a sweep.

    Alpha of block k of L is alpha * (1 + tilt * (2k / (L - 1) - 1)), clipped to [0, 1]: its mean over blocks is alpha.
    """

    alpha: float
    tilt: float = 0.0
    rules: tuple[str, ...] = ()
    """Rules of the grid, as `--layer-alpha` has them; they win over the tilt."""
    method: str = ""
    """Another method than the sweep's, for a cell that is no point of the grid: `model-stock`."""

    @property
    def label(self) -> str:
        """`0.25`, `0.25 tilt -0.5`, `0.25 cnn=0`: for tables and figures."""
        tilt = f" tilt {self.tilt:g}" if self.tilt else ""
        return self.method or f"{self.alpha:g}{tilt}" + "".join(f" {rule}" for rule in self.rules)

    @property
    def clips(self) -> bool:
        """Whether its tilt asks for more than 1 at one end, so that the mean over blocks is less than alpha."""
        return self.alpha * (1 + abs(self.tilt)) > 1

    @property
    def key(self) -> str:
        """Name of its file: equal for equal cells and for no others."""
        exact = repr((self.alpha, self.tilt, self.rules, self.method))
        return f"{self.alpha:.4f}_{self.tilt:+.2f}_{hashlib.sha256(exact.encode()).hexdigest()[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Return the cell as every document has it."""
        return {"alpha": self.alpha, "tilt": self.tilt, "layer_alpha": list(self.rules), "method": self.method}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cell:
        """Return what `to_json` made."""
        rules = tuple(map(str, content["layer_alpha"]))
        return cls(float(content["alpha"]), float(content["tilt"]), rules, str(content["method"]))


BASE, FINETUNED = Cell(0.0), Cell(1.0)
"""The end points: every sweep has them."""
STOCK = Cell(1.0, method="model-stock")
"""What Model Stock makes of several fine-tunes: a heuristic, beside the grid."""


def parse_numbers(text: str, what: str, least: float, most: float) -> tuple[float, ...]:
    """Parse `START:STOP:STEP`, the stop included, or numbers with commas between them.

    Raises:
        UsageError: it is neither, or a number lies outside of [least, most].
    """
    words = text.split(":") if ":" in text else text.split(",")
    numbers = [parse_number(word.strip(), what, "0.25, or 0:1:0.05") for word in words]
    if ":" in text:
        if len(numbers) != 3 or not numbers[2] > 0 or numbers[1] < numbers[0]:
            raise UsageError(f"{quote(text)} is not START:STOP:STEP", hint="write it as 0:1:0.05")
        start, stop, step = numbers
        if (stop - start) / step > MOST:
            raise UsageError(f"{quote(text)} are more than {MOST} numbers")
        count = math.floor((stop - start) / step + 1e-9) + 1
        numbers = [round(start + place * step, 10) for place in range(count)]
    for number in numbers:
        if not least <= number <= most:
            raise UsageError(f"{what} of a sweep lies between {least:g} and {most:g}, got {number:g}")
    return tuple(dict.fromkeys(numbers))


def lay_out(
    alphas: Sequence[float], tilts: Sequence[float] = (0.0,), rules: Sequence[Sequence[str]] = ()
) -> tuple[Cell, ...]:
    """Return the cells, the end points among them: each once, in order.

    Args:
        alphas: from 0 to 1.
        tilts: from -1 to 1.
        rules: of each `--layer-alpha`, its alternatives; one of each goes into a cell.

    Raises:
        UsageError: there are more than `MOST`.

    Example:
        >>> from speechft_merge import lay_out
        >>> [cell.label for cell in lay_out([0.25], [0.0, 0.5])]
        ['0', '0.25', '0.25 tilt 0.5', '1']
    """
    points = tuple(listed(alphas)), tuple(listed(tilts))
    for name, given in zip(("alphas", "tilts"), points, strict=True):
        require(given, Sequence[float], name)
    if math.prod(map(len, (*points, *rules))) > MOST:
        raise UsageError(f"a sweep of more than {MOST} cells", hint="give fewer alphas, tilts or rules")
    made = (
        Cell(alpha, tilt if alpha else 0.0, chosen)
        for alpha, tilt in itertools.product(*points)
        for chosen in itertools.product(*rules)
    )
    return in_order([BASE, *made, FINETUNED])


def in_order(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return cells by alpha, tilt and rules, each once; those of another method last."""
    return tuple(sorted({*cells}, key=lambda cell: (cell.method, cell.alpha, abs(cell.tilt), cell.tilt, cell.rules)))


def parse_rule_grid(text: str) -> tuple[str, ...]:
    """Return the alternatives of one `--layer-alpha`: `cnn=0,0.25` is `cnn=0` and `cnn=0.25`."""
    selector, equals, values = text.rpartition("=")
    return tuple(f"{selector}{equals}{value.strip()}" for value in values.split(","))


def tilted(cell: Cell, stacks: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the rules that give a cell its tilt.

    Args:
        cell: of the grid.
        stacks: name -> numbers of the blocks that are interpolated, from 0.
    """
    rules = []
    for stack, blocks in stacks.items() if cell.tilt else ():
        depth = max(len(blocks) - 1, 1)
        for place, block in enumerate(sorted(blocks)):
            alpha = cell.alpha * (1 + cell.tilt * (2 * place / depth - 1)) if len(blocks) > 1 else cell.alpha
            rules.append(f"{stack}.{block}={min(max(alpha, 0.0), 1.0)!r}")
    return tuple(rules)
