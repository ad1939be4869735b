"""Decides in advance what an output consists of: weights files, names in them, small files beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints import labs
from speechft_merge.checkpoints.companions import (
    CONFIG,
    FEATURE_EXTRACTOR,
    encode_companion,
    parse_companion,
    read_companion_json,
)
from speechft_merge.checkpoints.dtypes import DType
from speechft_merge.checkpoints.model_config import ModelConfig, read_model_config
from speechft_merge.errors import UsageError
from speechft_merge.layouts.configuration import DECOAR2, WHISPER
from speechft_merge.layouts.family import OWN_PREFIX
from speechft_merge.layouts.heads import heads_of, task_of
from speechft_merge.layouts.naming import TRANSFORMERS
from speechft_merge.layouts.whisper_configuration import NOT_IN_ITS_FILE
from speechft_merge.output.companions import choose_companions, config_like
from speechft_merge.output.files import OutputFiles
from speechft_merge.output.lab_file import lay_out_lab_file, note_stale
from speechft_merge.output.loadable import check_loadable, has_class_names
from speechft_merge.output.shards import lay_out_safetensors
from speechft_merge.plan.findings import Finding, Level
from speechft_merge.plan.plan import Action

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.layouts.naming import Naming
    from speechft_merge.plan.plan import Plan, PlannedTensor
    from speechft_merge.recipe.recipe import Recipe


class OutputForm(NamedTuple):
    """What an output consists of, before anything is written."""

    plan: Plan
    """Under the names of the output."""
    files: OutputFiles
    companions: dict[str, bytes]
    """Name -> content of the small files beside the weights."""
    findings: tuple[Finding, ...]
    """What is to be noted about these, or speaks against the output."""


def decide_form(plan: Plan, base: Checkpoint, finetuned: Checkpoint, max_shard_size: int | None) -> OutputForm:
    """Decide the form that a plan's recipe asks for: a copy of a lab's file with other numbers, or safetensors.

    safetensors have the names of the model whose class is written; with `format: safetensors`, transformers' names.

    Args:
        plan: what becomes of each tensor, under the names of that model.
        base: the pre-trained model.
        finetuned: the first fine-tune.
        max_shard_size: bytes of a weights file; None for a single one.

    Raises:
        UsageError: the model's file cannot be written in the requested format: it is of another kind, or
            transformers has no class for its model, or it does not tell enough.
        CheckpointError: see `lab_file.lay_out_lab_file`; or its config is not JSON, or a companion is far too large.
    """
    owner, other = (finetuned, base) if plan.recipe.keep_head else (base, finetuned)
    if keeps_lab_file(owner, plan.recipe) and not (plan.recipe.format == "auto" and _has_class(plan, owner, other)):
        if max_shard_size is not None:
            raise UsageError(
                "a pickled checkpoint is one file", hint="omit --max-shard-size or pass --format safetensors"
            )
        if plan.recipe.strip:
            from speechft_merge.output.stripped_file import lay_out_stripped_file  # it reads pickles; rarely asked for

            return OutputForm(plan, lay_out_stripped_file(plan.tensors, owner), {}, ())
        return OutputForm(plan, lay_out_lab_file(plan.tensors, owner), {}, note_stale(owner))
    if plan.recipe.strip:
        raise UsageError("--strip has no effect on a model directory, which holds tensors only", hint="leave it out")
    findings: tuple[Finding, ...] = ()
    if plan.recipe.format == "safetensors" and (_is_foreign(owner) or _has_other_names(owner)):
        first = plan.alignments[0]
        prefix = first.finetuned_prefix if plan.recipe.keep_head else first.base_prefix
        prefix = prefix if prefix in owner.naming.roots else owner.naming.prefix
        model = read_model_config(owner, prefix)
        plan = convert(plan, model, owner, prefix)
        derived = {CONFIG: model.config, FEATURE_EXTRACTOR: model.extractor}
        companions = {name: encode_companion(content) for name, content in derived.items() if content is not None}
        findings = tuple(_not_in_its_file(model, owner))
    else:
        chosen = choose_companions(owner, other, {t.name for t in plan.tensors}, plan.recipe.keep_head)
        companions, findings = chosen.files, chosen.findings
        plan = _without_wrappers(plan, owner.naming)
    if CONFIG in companions:
        companions[CONFIG] = _with_dtype(companions[CONFIG], plan, owner.reference)
        shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
        findings += tuple(check_loadable(parse_config(companions), shapes, companions))
    return OutputForm(plan, lay_out_safetensors(plan.tensors, max_shard_size), companions, findings)


def _has_class(plan: Plan, owner: Checkpoint, other: Checkpoint) -> bool:
    """Return whether a bare state dict is of a class of transformers whose config the base's folder tells."""
    config = read_companion_json(other, CONFIG) if plan.recipe.keep_head else {}
    if _is_foreign(owner) or owner.state_path or "model_type" not in config:
        return False
    return config_like(config, owner, other, [tensor.name for tensor in plan.tensors]) is not None


def _without_wrappers(plan: Plan, naming: Naming) -> Plan:
    """Put the plan under the owner's names without the words of wrappers, which no class of transformers knows."""
    if not naming.wrappers:
        return plan
    return replace(plan, tensors=tuple(replace(t, name=naming.unwrapped.get(t.name, t.name)) for t in plan.tensors))


def keeps_lab_file(owner: Checkpoint, recipe: Recipe) -> bool:
    """Return whether the output is a copy of the owner's file with other numbers, see `lab_file`.

    Raises:
        UsageError: its file does not fit the format that the recipe asks for.
    """
    lab, foreign = owner.origin.lab if owner.origin else None, _is_foreign(owner)
    pickled = _is_pickled(owner)
    match recipe.format:
        case "auto":
            return pickled and (foreign or bool(owner.state_path) or not _is_of_its_class(owner))
        case "safetensors":
            return False
        case "s3prl" if pickled and (lab in (labs.S3PRL, labs.S3PRL_FINETUNE, labs.WAVLM) or _is_decoar2(owner)):
            return True
        case "fairseq" if pickled and lab == labs.FAIRSEQ:
            return True
    raise UsageError(f"{owner.reference} is {_called(owner, foreign)}", hint=_advice(recipe.format, lab, foreign))


def _is_foreign(owner: Checkpoint) -> bool:
    """Return whether transformers did not write its file."""
    return owner.origin is not None or owner.naming.layout != TRANSFORMERS


def _has_other_names(owner: Checkpoint) -> bool:
    """Return whether a pickled state dict is of a class of transformers, but not as this class would load it."""
    return _is_pickled(owner) and not _is_of_its_class(owner) and read_model_config(owner).config is not None


def _is_pickled(owner: Checkpoint) -> bool:
    return owner.container.startswith("torch ")


def _is_of_its_class(owner: Checkpoint) -> bool:
    """Return whether a config.json beside the weights names a class of transformers, and they have its names."""
    config = read_companion_json(owner, CONFIG)
    return "model_type" in config and has_class_names(config, owner.naming)


def _is_decoar2(owner: Checkpoint) -> bool:
    """Return whether it is DeCoAR 2.0's original file, which S3PRL reads as it is."""
    return read_model_config(owner).family == DECOAR2 and owner.state_path == "model"


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
    if model.config is None or model.family == DECOAR2:
        problem = model.problem or "it has no class for DeCoAR 2.0"
        raise UsageError(f"{owner.reference} cannot be written for transformers: {problem}", hint="leave out --format")
    names = owner.naming.under(prefix)
    task = task_of({name.canonical for name in names.values()})
    named = model.config["model_type"]
    openai = named == WHISPER and owner.naming.layout != TRANSFORMERS
    encoder = "" if task == "Model" and not openai else OWN_PREFIX.get(named, "model.")
    heads = heads_of(task)
    kept: list[PlannedTensor] = []
    dropped: list[PlannedTensor] = []
    for tensor in plan.tensors:
        name = names[tensor.name]
        if name.inside and not name.is_head:
            kept.append(replace(tensor, name=encoder + name.canonical))
        elif name.canonical.partition(".")[0] in heads:
            kept.append(replace(tensor, name=name.canonical))
        else:
            reason = "transformers has no place for it"
            dropped.append(replace(tensor, action=Action.LEFT_OUT, reason=reason, operation=None))
    return replace(plan, tensors=tuple(kept), left_out=(*dropped, *plan.left_out))


def _not_in_its_file(model: ModelConfig, owner: Checkpoint) -> Iterator[Finding]:
    """Yield a note of what the class of a model needs and its lab's file does not hold."""
    if model.family == WHISPER:
        text = f"{owner.reference} holds no {' and no '.join(NOT_IN_ITS_FILE)}, so the merge has none"
        yield Finding(
            Level.NOTE, f"{text}: to generate text, take them from the model of its size by openai on the Hub"
        )


def parse_config(companions: dict[str, bytes]) -> dict[str, Any]:
    """Return the output's config as an object; empty if it has none."""
    return parse_companion(companions[CONFIG], "the output", CONFIG) if CONFIG in companions else {}


def _with_dtype(content: bytes, plan: Plan, reference: str) -> bytes:
    """Return the config with the output's element type, under the key that it uses (`dtype` from transformers 5 on)."""
    config = parse_companion(content, reference, CONFIG)
    key = "dtype" if "dtype" in config else "torch_dtype"
    actual = _main_dtype(plan)
    if config.get(key, "float32" if actual is DType.F32 else None) == actual.torch_name:
        return content
    return encode_companion(config | {key: actual.torch_name})


def _main_dtype(plan: Plan) -> DType:
    """Return the float type that most bytes of the output have."""
    sizes: Counter[DType] = Counter()
    for tensor in plan.tensors:
        if tensor.dtype.interpolated:
            sizes[tensor.dtype] += tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])
