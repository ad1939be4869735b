"""`speechft-merge inspect REF` and `inspect BASE FINETUNED`."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechft_merge.cli import options
from speechft_merge.cli.merge import show_layers
from speechft_merge.cli.sink import Output, megabytes

if TYPE_CHECKING:
    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.layouts.naming import Naming
    from speechft_merge.plan.plan import Plan

References = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="A model, or a base and fine-tunes to be matched with it."),
]


def inspect(
    models: References,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Show what is in a checkpoint, or how two would be matched; no weights are read. -v lists every tensor."""
    from speechft_merge.checkpoints import open_checkpoint
    from speechft_merge.plan.plan import make_plan
    from speechft_merge.recipe.recipe import Recipe

    shown = Output(json, quiet, verbose)
    opened = [open_checkpoint(reference) for reference in models]
    if len(opened) == 1:
        if json:
            shown.document(describe_checkpoint(opened[0]))
        else:
            show_checkpoint(shown, opened[0])
        return
    plan = make_plan(opened[0], opened[1:], Recipe())
    if json:
        shown.document(describe_mapping(plan, models))
    else:
        show_mapping(shown, plan)


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The index as a JSON document."""
    from speechft_merge.checkpoints.model_config import read_model_config
    from speechft_merge.checkpoints.opening import other_weights

    model, naming = read_model_config(checkpoint), checkpoint.naming
    names = naming.under()
    return {
        "reference": checkpoint.reference,
        "container": checkpoint.container,
        "lab": checkpoint.origin.lab if checkpoint.origin else None,
        "layout": naming.layout,
        "family": model.title,
        "model_type": model.family,
        "files": [{"file": source.name, "size": source.size} for source in checkpoint.sources],
        "other_weights": other_weights(checkpoint),
        "state_dict": checkpoint.state_path or None,
        "parameters": checkpoint.parameters,
        "dtypes": dict(Counter(span.dtype.torch_name for span in checkpoint.tensors.values())),
        "merge": {
            "prefix": naming.prefix,
            "stacks": {stack: len(blocks) for stack, blocks in naming.stacks.items()},
            "tensors": sum(not name.is_head for name in names.values()),
            "parameters": _parameters(naming),
            "heads": [own for own, name in names.items() if name.is_head],
        },
        "tensors": {
            name: {
                "dtype": span.dtype.torch_name,
                "shape": list(span.shape),
                "file": span.source.name,
                "offset": span.offset,
                "transformers": names[name].canonical,
            }
            for name, span in checkpoint.tensors.items()
        },
        "unreadable": checkpoint.unreadable,
        "others": checkpoint.others,
        "metadata": checkpoint.metadata,
    }


def show_checkpoint(shown: Output, checkpoint: Checkpoint) -> None:
    """The same for people."""
    from speechft_merge.checkpoints.model_config import read_model_config
    from speechft_merge.checkpoints.opening import other_weights

    model, naming = read_model_config(checkpoint), checkpoint.naming
    names = naming.under()
    dtypes = Counter(span.dtype.torch_name for span in checkpoint.tensors.values())
    size = sum(source.size for source in checkpoint.sources)
    others = other_weights(checkpoint)
    lab = f" ({checkpoint.origin.lab})" if checkpoint.origin else ""
    state = f", state dict at {checkpoint.state_path!r}" if checkpoint.state_path else ""
    facts = [
        ("family", model.title + (f" ({model.family})" if model.family else "")),
        ("container", checkpoint.container + lab + state),
        ("layout", f"names of {naming.layout}" + (f", under the prefix {naming.prefix!r}" if naming.prefix else "")),
        ("size", f"{megabytes(size)} in {len(checkpoint.sources)} file(s)"),
        ("parameters", f"{checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors"),
        ("element types", ", ".join(f"{name} ({count})" for name, count in dtypes.items())),
        *([("other weights", f"{', '.join(others)} (not opened; name one to open it)")] if others else []),
        *((f"blocks of the {stack}", _blocks(stack, blocks)) for stack, blocks in naming.stacks.items()),
        ("a merge uses", _used(naming)),
        *((f"cannot be read: {name}", why) for name, why in checkpoint.unreadable.items()),
        *((f"also holds {key}", what) for key, what in checkpoint.others.items()),
        *((f"metadata {key}", value) for key, value in checkpoint.metadata.items()),
    ]
    shown.table(["", checkpoint.reference], facts)
    if not shown.verbose:
        return
    rows = []
    for name, span in checkpoint.tensors.items():
        rows.append([name, span.dtype.torch_name, " x ".join(map(str, span.shape)) or "()", names[name].location.part])
    shown.table(["tensor", "type", "shape", "part"], rows)


def _used(naming: Naming) -> str:
    """Return what of the checkpoint is interpolated, and which heads are not."""
    names = naming.under().values()
    heads = dict.fromkeys(".".join(name.canonical.split(".")[:-1]) or name.canonical for name in names if name.is_head)
    told = ", ".join(list(heads)[:6]) + (", ..." if len(heads) > 6 else "")
    used = f"{_parameters(naming):,} parameters in {sum(not name.is_head for name in names)} tensors"
    return used + (f"; not the heads {told}" if heads else "")


def _parameters(naming: Naming) -> int:
    return sum(prod(naming.shapes[own]) for own, name in naming.under().items() if not name.is_head)


def _blocks(stack: str, blocks: list[int]) -> str:
    """Return how many blocks a stack has, and the selector of all of them."""
    return f"{len(blocks)}: {'' if stack == 'encoder' else stack + '.'}{blocks[0]}-{blocks[-1]} in --layer-alpha"


def describe_mapping(plan: Plan, models: list[str]) -> dict[str, Any]:
    """The match of a base and fine-tunes as a JSON document."""
    from speechft_merge.record.layers import summarise_layers

    return {
        "base": models[0],
        "finetuned": models[1:],
        "prefixes": [{"base": a.base_prefix, "finetuned": a.finetuned_prefix} for a in plan.alignments],
        "counts": plan.counts,
        "coverage": min(plan.coverages),
        "layers": [row.to_json() for row in summarise_layers(plan)],
        "tensors": {
            tensor.name: {
                "action": tensor.action.value,
                "reason": tensor.reason,
                "part": tensor.location.part,
                "layer": tensor.location.block,
                "finetuned": _partner_names(plan, tensor.name),
            }
            for tensor in plan.tensors
        },
        "left_out": [{"tensor": tensor.name, "reason": tensor.reason} for tensor in plan.left_out],
    }


def show_mapping(shown: Output, plan: Plan) -> None:
    """The same for people."""
    from speechft_merge.record.layers import summarise_layers

    show_layers(shown, summarise_layers(plan))
    for alignment in plan.alignments:
        shown.say(f"names: base {alignment.base_prefix + '*'!r} is fine-tuned {alignment.finetuned_prefix + '*'!r}")
    counts = ", ".join(f"{count} {what}" for what, count in plan.counts.items() if count)
    shown.say(f"{counts}; the fine-tune has {min(plan.coverages):.1%} of the base's parameters")
    if shown.verbose:
        rows = [[t.name, t.action.value, ", ".join(_partner_names(plan, t.name)), t.reason] for t in plan.tensors]
        rows += [[t.name, t.action.value, "", t.reason] for t in plan.left_out]
        shown.table(["tensor", "becomes", "in the fine-tune", "why"], rows)


def _partner_names(plan: Plan, name: str) -> list[str]:
    return [alignment.pairs[name] for alignment in plan.alignments if name in alignment.pairs]
