"""Makes the model card: README.md of the merged model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.foreign import as_code, as_markdown, clean
from speechft_merge.record.layers import drift_cell, summarise_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.evidence import Evidence
    from speechft_merge.executor.drift import Drift
    from speechft_merge.options import MergeOptions
    from speechft_merge.plan.findings import Finding
    from speechft_merge.plan.plan import Plan

NAME = "README.md"

TASKS = {
    "ForCTC": "automatic-speech-recognition",
    "ForConditionalGeneration": "automatic-speech-recognition",
    "ForSequenceClassification": "audio-classification",
    "ForAudioClassification": "audio-classification",
    "ForXVector": "audio-classification",
    "Model": "feature-extraction",
}
"""Ending of a transformers class -> pipeline_tag."""

CITATION = """@article{lin2026speechft,
  title   = {Speech-FT: Merging Pre-trained And Fine-Tuned Speech Representation Models For Cross-Task Generalization},
  author  = {Lin, Tzu-Quan and Huang, Wei-Ping and Tang, Hao and Lee, Hung-yi},
  journal = {IEEE Transactions on Audio, Speech and Language Processing},
  volume  = {34},
  pages   = {70--83},
  year    = {2026},
  doi     = {10.1109/TASLPRO.2025.3635827}
}"""


_METHODS = {
    "mean": "merged = base + alpha * (finetuned - base), {alphas} (Speech-FT, Lin et al. 2026)",
    "task-arithmetic": "merged = base + alpha * sum of weight * (finetuned - base), {alphas}, weights {weights} (task "
    "arithmetic, Ilharco et al. 2023)",
    "model-stock": "merged = base + alpha * mean of (finetuned - base), {alphas}, in each tensor multiplied by a ratio "
    "estimated from the angles between the fine-tunes (Model Stock, Jang et al. 2024); the table has the products",
}

SECTION = "## What the merge did to the features"
"""Heading of the section that a comparison adds."""
_MADE_BY = "Made by speechft-merge:"
"""Start of the line that follows this section."""


def with_section(card: str, section: str) -> str:
    """Return a card with the section of a comparison, in place of an earlier one if there is one.

    Args:
        card: Markdown, perhaps edited by its owner.
        section: Markdown without a heading.
    """
    before, found, rest = card.partition(f"{SECTION}\n")
    if found:  # up to the next heading, or the line that every card has
        ends = [place for mark in (f"\n{_MADE_BY}", "\n#") if (place := rest.find(mark)) >= 0]
        after = rest[min(ends) + 1 :] if ends else ""
    else:
        before, found, after = card.partition(_MADE_BY)
        after = found + after
    return f"{before.rstrip()}\n\n{SECTION}\n\n{section.strip()}\n\n{after}".rstrip() + "\n"


def is_ours(card: str) -> bool:
    """Return whether a merge wrote a card, or its owner out of one that it wrote."""
    return f"\n{_MADE_BY}" in card


def make_card(
    plan: Plan, models: Sequence[Checkpoint], drifts: dict[str, Drift], config: dict[str, Any],
    findings: Sequence[Finding], options: MergeOptions, weights: str = "model.safetensors",
) -> bytes:  # fmt: skip
    """Return the card: what was merged and how, drift per layer, the command, the citation.

    Args:
        plan: the merge.
        models: base and fine-tunes.
        drifts: as `executor.execute` measured them.
        config: the output's config.json; empty if it has none.
        findings: notes and warnings.
        options: with the command line, and the evidence for the recipe.
        weights: name of the file of weights.
    """
    base, *finetuned = models
    names = ", ".join(as_code(short(checkpoint.reference)) for checkpoint in finetuned)
    first, onto = short(finetuned[0].reference), short(base.reference)
    shortened = shortener([model.reference for model in models])
    rules = ", ".join(as_code(str(rule)) for rule in plan.recipe.rules)
    alphas = f"alpha = {plan.recipe.alpha:g}" + (f", but {rules}" if rules else "")
    weighted = ", ".join(f"{weight:g}" for weight in plan.recipe.coefficients(len(finetuned)))
    lines = [
        *_front_matter(models, config, options.evidence),
        "",
        f"# {as_markdown(first)} merged into {as_markdown(onto)}",
        "",
        f"Weights of {as_code(onto)} interpolated with {names}: "
        f"{_METHODS[plan.recipe.method].format(alphas=alphas, weights=weighted)}.",
        "",
        *_pinned(models),
        _sentence(plan),
        *(f"\n**{finding.level.value.capitalize()}:** {as_markdown(shortened(finding.text))}." for finding in findings),
        *_pattern(weights, short((finetuned[0] if plan.recipe.keep_head else base).reference), plan.recipe.strip),
        "",
        "| layer | alpha | drift | interpolated | copied |",
        "|---|---|---|---|---|",
        *(
            f"| {as_markdown(row.key.label)} | {row.alpha_cell} | {drift_cell(row.drift)} | {row.interpolated} "
            f"| {row.copied} |"
            for row in summarise_layers(plan, drifts)
            if row.interpolated or row.copied
        ),
        "",
        "drift: ||finetuned - base|| / ||base|| of the weights.",
        "",
        *([] if options.evidence is None else options.evidence.section()),
        _MADE_BY,
        "",
        "```shell",
        clean(shlex.join(["speechft-merge", *map(short, options.command)])),
        "```",
        "",
        "```bibtex",
        CITATION,
        "```",
        "",
    ]
    return "\n".join(lines).encode(errors="backslashreplace")


def _front_matter(models: Sequence[Checkpoint], config: dict[str, Any], evidence: Evidence | None) -> list[str]:
    """Return what the Hub reads: models on the Hub as base models, the class's task, the licence that all share."""
    origins = [checkpoint.hub for checkpoint in models]
    repos = [origin.repo for origin in origins if origin is not None]
    licences = {origin.license if origin is not None else None for origin in origins}
    licence = licences.pop() if len(licences) == 1 else None
    architectures = config.get("architectures")
    task = _task(str(architectures[0])) if isinstance(architectures, list) and architectures else None
    return [
        "---",
        *(["base_model:", *(f"- {repo}" for repo in repos), "base_model_relation: merge"] if repos else []),
        *(["library_name: transformers"] if config else []),
        *([f"pipeline_tag: {task}"] if task else []),
        *([f"license: {licence}"] if licence and re.fullmatch(r"[\w.-]+", licence) else []),
        "tags:",
        "- merge",
        "- speech-ft",
        "- speech",
        *([] if evidence is None else evidence.model_index(f"{_last_part(models[1].reference)}-merged", task)),
        "---",
    ]


def _task(architecture: str) -> str | None:
    """Return the Hub's name for the task of a class."""
    return next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)


def _pinned(models: Sequence[Checkpoint]) -> list[str]:
    """Return the commits that were read."""
    said = [f"- `{model.hub.repo}` at `{model.hub.commit}`" for model in models if model.hub is not None]
    return [*said, ""] if said else []


def _pattern(weights: str, owner: str, stripped: bool) -> list[str]:
    """Return a note on a lab's file: it is loaded in the same way as the file it copies."""
    if weights.endswith(".safetensors"):
        return []
    rest = "without its optimizer states and copies of the weights" if stripped else "and all else as it was"
    return ["", f"`{weights}` is {as_code(owner)} with merged weights {rest}: loaded in the same way."]


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


_PATH = re.compile(r"(?P<option>--[\w-]+=|-\w+)?(?P<path>(?:/|~|\.{1,2}/).*)", re.DOTALL)
"""A word of a command line that is a local path, or an option with one: `--recipe=../a.yaml`, `-qo/tmp/out`."""


def short(reference: str) -> str:
    """Return a Hub id as it is; of a local path the last part, as folders of one machine mean nothing elsewhere."""
    found = _PATH.fullmatch(reference)
    return (found["option"] or "") + _last_part(found["path"]) if found else reference


def shortener(words: Iterable[str]) -> Callable[[str], str]:
    """Return what shortens, wherever they stand in a text, the local paths among some words of a command line."""
    paths = {found["path"] for word in words if (found := _PATH.fullmatch(word)) and _last_part(found["path"])}
    paths |= {str(Path(path).expanduser()) for path in paths if path.startswith("~/")}
    either = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
    if not either:
        return lambda text: text
    within = re.compile(rf"(?<![\w/.:~-])(?:{either})(?![\w-])")  # no part of a URL or of a longer name
    return lambda text: within.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
