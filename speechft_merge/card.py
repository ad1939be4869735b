"""The model card: README.md of the merged model."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from speechft_merge.report import summarise_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.plan import Plan
    from speechft_merge.stream import Drift

NAME = "README.md"

CITATION = """@article{lin2026speechft,
  title   = {Speech-FT: Merging Pre-trained And Fine-Tuned Speech Representation Models For Cross-Task Generalization},
  author  = {Lin, Tzu-Quan and Huang, Wei-Ping and Tang, Hao and Lee, Hung-yi},
  journal = {IEEE Transactions on Audio, Speech and Language Processing},
  volume  = {34},
  pages   = {70--83},
  year    = {2026},
  doi     = {10.1109/TASLPRO.2025.3635827}
}"""


def make_card(
    plan: Plan, base: str, finetuned: Sequence[str], drifts: dict[str, Drift], command: Sequence[str], loads: bool
) -> bytes:
    """The card: what was merged and how, drift per layer, the command, the citation.

    Args:
        plan: the merge.
        base: what to call the base; a local path is shortened to its last part.
        finetuned: what to call the fine-tunes.
        drifts: as `stream.execute` measured them.
        command: the command line, as a list of words.
        loads: whether there is a config.json, so that transformers can load the model.
    """
    recipe = plan.recipe
    names = ", ".join(f"`{_short(name)}`" for name in finetuned)
    alphas = f"alpha = {recipe.alpha:g}"
    if recipe.rules:
        alphas += ", but " + ", ".join(f"`{rule}`" for rule in recipe.rules)
    lines = [
        "---",
        *(["library_name: transformers"] if loads else []),
        "tags:",
        "- merge",
        "- speech-ft",
        "- speech",
        "---",
        "",
        f"# {_short(finetuned[0])} merged into {_short(base)}",
        "",
        f"Weights of `{_short(base)}` interpolated with {names}: merged = base + alpha * (finetuned - base), {alphas} "
        "(Speech-FT, Lin et al. 2026).",
        "",
        _sentence(plan),
        "",
        "| layer | alpha | drift | interpolated | copied |",
        "|---|---|---|---|---|",
        *(
            f"| {row.layer} | {row.alpha or '-'} | {'-' if row.drift is None else format(row.drift, '.4f')} "
            f"| {row.interpolated} | {row.copied} |"
            for row in summarise_layers(plan, drifts)
            if row.interpolated or row.copied
        ),
        "",
        "drift: ||finetuned - base|| / ||base|| of the weights.",
        "",
        "Made by speechft-merge:",
        "",
        "```shell",
        shlex.join(["speechft-merge", *map(_short, command)]),
        "```",
        "",
        "```bibtex",
        CITATION,
        "```",
        "",
    ]
    return "\n".join(lines).encode(errors="backslashreplace")


def _sentence(plan: Plan) -> str:
    counts = plan.counts
    words = [f"{counts['interpolated']} tensors are interpolated"]
    if counts["copied"]:
        words.append(f"{counts['copied']} are the base's own")
    if counts["taken"]:
        words.append(f"{counts['taken']} are the fine-tune's own (its head)")
    if counts["left out"]:
        words.append(f"{counts['left out']} of the inputs are not in it")
    return ", ".join(words) + "."


def _short(reference: str) -> str:
    """A Hub id as it is; of a local path the last part, since folders of one machine say nothing to others."""
    option, equals, value = reference.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={_short(value)}"
    if reference[:2] == "-o" and reference[2:]:
        return "-o" + _short(reference[2:])
    return reference.rstrip("/").rpartition("/")[2] if reference.startswith(("/", ".", "~")) else reference
