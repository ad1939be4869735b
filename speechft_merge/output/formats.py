"""Decides the form in which the output is written, from the base and the recipe. Pure, and done in advance."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints import labs
from speechft_merge.checkpoints.companions import CONFIG, FEATURE_EXTRACTOR
from speechft_merge.checkpoints.model_config import ModelConfig, read_model_config
from speechft_merge.errors import UsageError
from speechft_merge.layouts.heads import heads_of, task_of
from speechft_merge.layouts.naming import TRANSFORMERS
from speechft_merge.output.files import OutputFiles, lay_out_safetensors
from speechft_merge.output.lab_file import lay_out_lab_file
from speechft_merge.plan.plan import Action

if TYPE_CHECKING:
    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.plan.plan import Plan, PlannedTensor
    from speechft_merge.recipe.recipe import Recipe


class Form(Enum):
    """The ways to write a merged model."""

    SAFETENSORS = "safetensors"
    """Under the names that the model's file has."""
    CONVERTED = "converted"
    """safetensors under transformers' names, from a file of a lab, with a config.json derived from it."""
    LAB_FILE = "lab file"
    """A copy of the lab's file with other numbers, see `lab_file`."""


@dataclass(frozen=True, slots=True)
class Written:
    """A plan in the form in which it is written."""

    plan: Plan
    files: OutputFiles
    companions: dict[str, bytes] | None
    """Small files beside the weights; None for those of the inputs."""


def write_form(plan: Plan, owner: Checkpoint, max_shard_size: int | None) -> Written:
    """Bring a plan into the form that its recipe and the owner's file ask for.

    Args:
        plan: what becomes of each tensor, under the owner's names.
        owner: the model whose class and file the output follows.
        max_shard_size: bytes of a weights file; None for a single one.

    Raises:
        UsageError: the owner's file cannot be written in the requested format: it is of another kind, or
            transformers has no class for its model, or it does not tell enough.
        CheckpointError: see `lab_file.lay_out_lab_file`.
    """
    form = choose_form(owner, plan.recipe)
    if form is Form.LAB_FILE:
        if max_shard_size is not None:
            raise UsageError(
                "a lab's checkpoint is one file", hint="omit --max-shard-size or pass --format safetensors"
            )
        return Written(plan, lay_out_lab_file(plan.tensors, owner), {})
    if form is Form.CONVERTED:
        first = plan.alignments[0]
        prefix = first.finetuned_prefix if plan.recipe.keep_head else first.base_prefix
        prefix = prefix if prefix in owner.naming.roots else owner.naming.prefix
        model = read_model_config(owner, prefix)
        converted = convert(plan, model, owner, prefix)
        return Written(converted, lay_out_safetensors(converted.tensors, max_shard_size), companions_in(model))
    return Written(plan, lay_out_safetensors(plan.tensors, max_shard_size), None)


def choose_form(owner: Checkpoint, recipe: Recipe) -> Form:
    """Choose the form for a file and a recipe.

    Raises:
        UsageError: none fits.
    """
    lab = owner.origin.lab if owner.origin else None
    foreign = lab is not None or owner.naming.layout != TRANSFORMERS
    pickled = owner.container in ("torch zip", "torch legacy")
    match recipe.format:
        case "auto":
            return Form.LAB_FILE if foreign and pickled else Form.SAFETENSORS
        case "safetensors":
            return Form.CONVERTED if foreign else Form.SAFETENSORS
        case "s3prl" if pickled and (lab in (labs.S3PRL, labs.S3PRL_FINETUNE, labs.WAVLM) or _is_decoar2(owner)):
            return Form.LAB_FILE
        case "fairseq" if pickled and lab == labs.FAIRSEQ:
            return Form.LAB_FILE
    raise UsageError(f"{owner.reference} is {_called(owner, foreign)}", hint=_advice(recipe.format, lab, foreign))


def _is_decoar2(owner: Checkpoint) -> bool:
    """Return whether it is DeCoAR 2.0's original file, which S3PRL reads as it is."""
    return read_model_config(owner).family == "decoar2" and owner.state_path == "model"


def _called(owner: Checkpoint, foreign: bool) -> str:
    if owner.origin is not None:
        return f"a file of the kind {owner.origin.lab}"
    return "a bare state dict" if foreign else "a model of transformers"


def _advice(asked: str, lab: str | None, foreign: bool) -> str:
    if asked == "s3prl" and lab == labs.FAIRSEQ:
        return (
            "convert the base with S3PRL first (hubert_custom(ckpt, fairseq=True)), or pass --format fairseq and "
            "convert the result"
        )
    taken = "everything but the weights is taken from the base (with --keep-head, from the fine-tune)"
    if asked == "s3prl":
        told = "" if foreign else " (S3PRL also reads transformers' models: hf_hubert_custom, hf_wav2vec2_custom)"
        return (
            f"give the base as S3PRL has it, from s3prl/converted_ckpts on the Hub: {taken}, and fine-tunes in any "
            f"layout merge into it{told}"
        )
    return f"give a base that fairseq wrote: {taken}"


def convert(plan: Plan, model: ModelConfig, owner: Checkpoint, prefix: str) -> Plan:
    """Put the plan under the names of a class of transformers; what the class has no place for is left out.

    Args:
        plan: under the owner's names.
        model: what the owner is.
        owner: the model whose class and file the output follows.
        prefix: of the encoder in the owner's names.

    Raises:
        UsageError: transformers has no class for the model, or its file does not tell enough.
    """
    if model.config is None:
        raise UsageError(
            f"{owner.reference} cannot be written for transformers: {model.problem}", hint="leave out --format"
        )
    names = owner.naming.under(prefix)
    task = task_of({name.canonical for name in names.values()})
    encoder = "" if task == "Model" else f"{model.config['model_type']}."
    heads = heads_of(task)
    kept: list[PlannedTensor] = []
    dropped: list[PlannedTensor] = []
    for tensor in plan.tensors:
        name = names[tensor.name]
        if not name.is_head:
            kept.append(replace(tensor, name=encoder + name.canonical))
        elif name.canonical.partition(".")[0] in heads:
            kept.append(replace(tensor, name=name.canonical))
        else:
            reason = "transformers has no place for it"
            dropped.append(replace(tensor, action=Action.LEFT_OUT, reason=reason, operation=None))
    return replace(plan, tensors=tuple(kept), left_out=(*dropped, *plan.left_out))


def companions_in(model: ModelConfig) -> dict[str, bytes]:
    """Return config.json and preprocessor_config.json of a lab's model."""
    files = {CONFIG: model.config, FEATURE_EXTRACTOR: model.extractor}
    return {name: _encode(content) for name, content in files.items() if content is not None}


def _encode(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
