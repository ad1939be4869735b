"""What the measurements say: a table, a figure, and the claims that must hold."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Record = dict[str, Any]

MEASURES = {
    "identification": "who speaks, own head",
    "identification_probe": "who speaks, probe",
    "phones": "phones",
    "language": "language",
    "cka": "CKA, all layers",
    "cka_last": "CKA, last layer",
}


def collect(records: list[Record], **key: Any) -> dict[str, list[float]]:
    """Each measure's values over the seeds."""
    chosen = [record for record in records if all(record.get(name) == value for name, value in key.items())]
    return {name: [record[name] for record in chosen if name in record] for name in MEASURES}


def standard_error(values: list[float]) -> float:
    """Of the mean; nan for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    error = standard_error(values)
    return f"{mean(values):.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def table(records: list[Record]) -> str:
    """A Markdown table: mean and standard error over the seeds."""
    lines = [
        "| learning rate | recipe | seeds | alpha | " + " | ".join(MEASURES.values()) + " |",
        "|" + "---|" * (4 + len(MEASURES)),
    ]
    settings = {(r.get("rate", ""), r["recipe"], r["alpha"]) for r in records}
    order = ["hot", "gentle", ""]
    for rate, recipe, alpha in sorted(settings, key=lambda found: (order.index(found[0]), found[1], found[2])):
        key = {"recipe": recipe, "alpha": alpha} | ({"rate": rate} if rate else {})
        values = collect(records, **key)
        cells = [rate, recipe, str(len(values["phones"])), alpha, *map(_cell, values.values())]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(records: list[Record], path: Path) -> None:
    """Alpha against accuracy, a panel a learning rate and recipe, error bars of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(r["rate"], r["recipe"]) for r in records if "rate" in r}, reverse=True)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(2.9 * len(panels), 3.3), sharey=True, squeeze=False)
    for axis, (rate, recipe) in zip(axes[0], panels, strict=True):
        mine = [r for r in records if r.get("rate") == rate and r["recipe"] == recipe and r["alpha"][0].isdigit()]
        for name, label in MEASURES.items():
            values = {float(alpha): collect(mine, alpha=alpha)[name] for alpha in sorted({r["alpha"] for r in mine})}
            values = {alpha: found for alpha, found in values.items() if found}
            errors = [0.0 if len(found) == 1 else standard_error(found) for found in values.values()]
            style = "--" if name.startswith("cka") else "-"
            axis.errorbar(list(values), [mean(v) for v in values.values()], errors, fmt=f"o{style}", ms=3, label=label)
        for record in records:
            if record["recipe"] == "log-mel":
                axis.axhline(record["phones"], color="C2", ls=":", lw=1, label="phones, log-mel")
        axis.axvline(0.25, color="0.85", zorder=0)
        axis.set(title=f"{rate}, {recipe}", xlabel="alpha", xlim=(-0.03, 1.03), ylim=(0, 1.02))
    axes[0][0].set_ylabel("accuracy; CKA to the base")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=7, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=90)


def check(records: list[Record]) -> int:
    """Print each claim and whether it holds; 1 if one does not."""
    ends = {alpha: collect(records, rate="hot", recipe="ordinary", alpha=alpha) for alpha in ("0.0", "0.25", "1.0")}
    base, merged, tuned = (mean(values["phones"]) for values in ends.values())
    identification = mean(ends["0.25"]["identification"])
    claims = [
        (f"fine-tuning costs {base - tuned:.3f} of the phones, at least 0.08", base - tuned >= 0.08),
        (f"alpha 0.25 wins {(merged - tuned) / (base - tuned):.0%} of it back, at least half",
         merged - tuned >= (base - tuned) / 2),
        (f"identification is {identification:.3f} at alpha 0.25, at least 0.6", identification >= 0.6),
    ]  # fmt: skip
    floor = mean(collect(records, recipe="log-mel")["phones"])
    for record in records:
        if record["recipe"] == "unrelated":
            told = record["identification"] / mean(ends["1.0"]["identification"])
            kept = (record["phones"] - floor) / (base - floor)
            claims += [
                (f"an unrelated encoder is refused (exit code {record['refused']})", record["refused"] == 65),
                (f"forced in at {record['alpha']} it leaves {told:.0%} of identification, at most half", told <= 0.5),
                (f"and {kept:.0%} of what the base's phones have over log-mel spectra, at most half", kept <= 0.5),
            ]
    for claim, holds in claims:
        print(("holds: " if holds else "FAILS: ") + claim)
    return int(not all(holds for _, holds in claims))
