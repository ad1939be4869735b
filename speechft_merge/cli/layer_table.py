"""Makes the table of layers that a merge, its dry run and `inspect` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechft_merge.cli.sink import Table
from speechft_merge.record.layers import drift_cell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from speechft_merge.record.layers import LayerRow


def layer_parts(rows: Sequence[LayerRow]) -> Iterator[Table | str]:
    """Yield the table, without columns that say nothing, and under it why tensors were not interpolated."""
    columns: dict[str, list[str]] = {
        "layer": [row.key.label for row in rows],
        "alpha": [row.alpha_cell for row in rows],
        "drift": [drift_cell(row.drift) for row in rows],
        "interpolated": [str(row.interpolated) for row in rows],
        "identical": [str(row.identical or 0) for row in rows],
        "copied": [str(row.copied) for row in rows],
        "left out": [str(row.left_out) for row in rows],
        "parameters": [f"{row.parameters:,}" for row in rows],
    }
    told = {title: cells for title, cells in columns.items() if any(cell not in ("-", "0") for cell in cells)}
    yield Table(list(told), list(zip(*told.values(), strict=True)))
    yield from (f"{row.key.label}: {reason}" for row in rows for reason in row.reasons)


def in_words(counts: Mapping[str, int]) -> str:
    """Return `48 interpolated, 2 left out`."""
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
