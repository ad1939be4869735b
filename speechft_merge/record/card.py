"""Makes the model card: README.md of the merged model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.labs import FAIRSEQ, S3PRL
from speechft_merge.errors import amount
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
    "ForCTC": ("automatic-speech-recognition", "AutoModelForCTC"),
    "ForConditionalGeneration": ("automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    "ForSequenceClassification": ("audio-classification", "AutoModelForAudioClassification"),
    "ForAudioClassification": ("audio-classification", "AutoModelForAudioClassification"),
    "ForXVector": ("audio-classification", "AutoModelForAudioXVector"),
    "ForPreTraining": (None, "AutoModelForPreTraining"),
    "Model": ("feature-extraction", "AutoModel"),
}
"""Ending of a transformers class -> pipeline_tag, and the class that loads it."""

_LOADED = {
    S3PRL: ("shell", "python run_downstream.py -m train -u hubert_local -k {}  # or the upstream of this model"),
    FAIRSEQ: ("python", "models, config, task = fairseq.checkpoint_utils.load_model_ensemble_and_task([{!r}])"),
}
"""Lab -> how its toolkit loads a file, and the language of that."""

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
    names = ", ".join(map(as_code, map(_name, finetuned)))
    first, onto = _name(finetuned[0]), _name(base)
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
        "",
        "## How to load it",
        "",
        *_loading(weights, finetuned[0] if plan.recipe.keep_head else base, config, plan.recipe.strip),
        "",
        "## What was mixed",
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
        "drift: how far fine-tuning moved the weights, ||finetuned - base|| / ||base||.",
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
    """Return what the Hub reads: the base models, the class's task, the licence that all share; hints where unknown."""
    cards = [_stated(model) for model in models]
    repos = [model.hub.repo for model in models if model.hub is not None]
    repos = list(dict.fromkeys(repos or [repo for repo, _ in cards if repo]))
    licences = {licence for _, licence in cards}
    licence = licences.pop() if len(licences) == 1 else None
    task = _kind(config)[0]
    return [
        "---",
        *(["base_model:", *(f"- {repo}" for repo in repos)] if repos else ["# base_model: org/base"]),
        *(["base_model_relation: merge"] if repos else []),
        *(["library_name: transformers"] if config else []),
        *([f"pipeline_tag: {task}"] if task else []),
        f"license: {licence}" if licence else "# license: one that the licences of all models allow",
        "tags:",
        "- merge",
        "- speech-ft",
        "- speech",
        *([] if evidence is None else evidence.model_index(f"{_last_part(models[1].reference)}-merged", task)),
        "---",
    ]


def _stated(model: Checkpoint) -> tuple[str | None, str | None]:
    """Return the base model and the licence that a model's card states."""
    if model.hub is not None:
        licence = model.hub.license
        return None, licence if licence and re.fullmatch(r"[\w.-]+", licence) else None
    front = _front_matter_of(Path(model.folder.inside(NAME))) if model.folder is not None else ""
    found = {
        "base_model": re.search(r"^base_model:\s+(?:- )?([\w.-]+/[\w.-]+)\s*$", front, re.MULTILINE | re.ASCII),
        "license": re.search(r"^license: *([\w.-]+) *$", front, re.MULTILINE | re.ASCII),
    }
    repo, licence = (match[1] if match else None for match in found.values())
    return repo, licence


def _front_matter_of(card: Path) -> str:
    """Return the front matter of a local card; empty where there is none."""
    if not card.is_file():  # a pipe would be waited for
        return ""
    try:
        with card.open(encoding="utf-8") as file:
            empty, front, _ = file.read(1 << 16).split("---\n", 2)
    except (OSError, ValueError):  # no file, not text, no front matter
        return ""
    return "" if empty else front


def _kind(config: dict[str, Any]) -> tuple[str | None, str]:
    """Return the Hub's name for the task of a config's class, and the class of transformers that loads it."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((found for ending, found in TASKS.items() if name.endswith(ending)), (None, "AutoModel"))


def _pinned(models: Sequence[Checkpoint]) -> list[str]:
    """Return the commits that were read."""
    said = [f"- `{model.hub.repo}` at `{model.hub.commit}`" for model in models if model.hub is not None]
    return [*said, ""] if said else []


def _name(model: Checkpoint) -> str:
    """Return a model's name: on the Hub its reference, of a local one the last part."""
    return model.reference if model.hub is not None else _last_part(model.reference)


def _loading(weights: str, owner: Checkpoint, config: dict[str, Any], stripped: bool) -> list[str]:
    """Return how the output is loaded: by transformers, or as the lab's file is that it copies."""
    if config:
        name = _kind(config)[1]
        load = f'model = {name}.from_pretrained("path/to/this")  # or its name on the Hub'
        return ["```python", f"from transformers import {name}", "", load, "```"]
    if weights.endswith(".safetensors"):
        return [f"`{weights}` has the names of {as_code(_name(owner))}: loaded in the same way."]
    rest = "without its optimizer states and copies of the weights" if stripped else "and all else as it was"
    said = f"`{weights}` is {as_code(_name(owner))} with merged weights {rest}: loaded in the same way."
    lab = owner.origin.lab if owner.origin is not None else ""
    if lab not in _LOADED:
        return [said]
    language, load = _LOADED[lab]
    return [said, "", f"```{language}", load.format(weights), "```"]


def _sentence(plan: Plan) -> str:
    counts = plan.counts
    words = [f"{amount(counts['interpolated'], 'tensor', 'is', 'are')} interpolated"]
    if counts["copied"]:
        words.append(f"{counts['copied']} are the base's own")
    if counts["taken"]:
        words.append(f"{counts['taken']} are the fine-tune's own (its head)")
    if counts["left out"]:
        why = ", ".join(sorted({as_markdown(tensor.reason) for tensor in plan.left_out}))
        words.append(f"{counts['left out']} of the inputs are left out ({why})")
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
