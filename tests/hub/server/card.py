"""What the Hub holds against the metadata of a model card; a few of its rules."""

from __future__ import annotations

import re
from typing import Any

import yaml

RELATIONS = ("adapter", "merge", "quantized", "finetune")
REPO_ID = re.compile(r"(?:[\w][\w.-]*/)?[\w][\w.-]*")
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def front_matter(readme: str) -> str:
    """The YAML at the head of a README; empty if there is none."""
    match = FRONT_MATTER.match(readme)
    return match[1] if match else ""


def metadata(readme: str) -> dict[str, Any]:
    """What the metadata says; nothing if it is broken."""
    try:
        loaded = yaml.safe_load(front_matter(readme))
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def errors(readme: str) -> list[str]:
    """Why the metadata is invalid."""
    try:
        loaded = yaml.safe_load(front_matter(readme))
    except yaml.YAMLError as error:
        return [f"Failed to parse YAML metadata: {str(error).splitlines()[0]}"]
    if loaded is None:
        return []
    if not isinstance(loaded, dict):
        return ["YAML metadata must be a mapping"]
    return [*_wrong_types(loaded), *_wrong_base_models(loaded.get("base_model", [])), *_wrong_relation(loaded)]


def _wrong_types(loaded: dict[str, Any]) -> list[str]:
    strings = ("license", "license_name", "library_name", "pipeline_tag")
    wrong = [f'"{name}" must be a string' for name in strings if not isinstance(loaded.get(name, ""), str)]
    tags = loaded.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        wrong.append('"tags" must be an array of strings')
    return wrong


def _wrong_base_models(models: Any) -> list[str]:
    if isinstance(models, str):
        models = [models]
    if not isinstance(models, list):
        return ['"base_model" must be a string or an array']
    return [
        f'"base_model[{i}]" with value "{model}" is not valid. Use a model id from https://hf.co/models.'
        for i, model in enumerate(models)
        if not isinstance(model, str) or not REPO_ID.fullmatch(model)
    ]


def _wrong_relation(loaded: dict[str, Any]) -> list[str]:
    if loaded.get("base_model_relation", RELATIONS[0]) in RELATIONS:
        return []
    return [f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]']
