"""Shows one checkpoint, for `inspect`."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from speechft_merge.adapters.folding import describe_adapter
from speechft_merge.checkpoints.model_config import read_model_config
from speechft_merge.checkpoints.opening import other_weights
from speechft_merge.cli.sink import Shown
from speechft_merge.display import Table
from speechft_merge.errors import amount
from speechft_merge.layouts.language_model import is_language_model
from speechft_merge.layouts.structure import main_stack
from speechft_merge.plan.contents import judge_contents
from speechft_merge.plan.encoders import encoder_names
from speechft_merge.text import megabytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.layouts.naming import Naming


def show_checkpoint(checkpoint: Checkpoint) -> Shown:
    """Return a table of facts, and with `-v` one of the tensors."""
    return Shown(partial(_document, checkpoint), partial(_parts, checkpoint))


def _document(checkpoint: Checkpoint) -> dict[str, Any]:
    model, naming, adapter = read_model_config(checkpoint), checkpoint.naming, describe_adapter(checkpoint)
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
        "dtypes": _count_dtypes(checkpoint),
        "merge": {
            "prefix": naming.prefix,
            "stacks": {stack: len(blocks) for stack, blocks in naming.stacks.items()},
            "tensors": sum(not name.location.stays for name in names.values()),
            "parameters": naming.parameters(),
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
        "encoders": encoder_names(checkpoint),
        "adapter": adapter and adapter[0],
        "problems": _problems(checkpoint, adapter),
        "others": checkpoint.others,
        "metadata": checkpoint.metadata,
    }


def _parts(checkpoint: Checkpoint, verbose: int) -> Iterator[Table | str]:
    yield Table(["", checkpoint.reference], _facts(checkpoint))
    if verbose:
        names = checkpoint.naming.under()
        rows = [
            [name, span.dtype.torch_name, " x ".join(map(str, span.shape)) or "()", names[name].location.part]
            for name, span in checkpoint.tensors.items()
        ]
        yield Table(["tensor", "type", "shape", "part"], rows)


def _facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    model, naming, adapter = read_model_config(checkpoint), checkpoint.naming, describe_adapter(checkpoint)
    others, encoders = other_weights(checkpoint), encoder_names(checkpoint)
    lab = f" ({checkpoint.origin.lab})" if checkpoint.origin else ""
    state = f", state dict at {checkpoint.state_path!r}" if checkpoint.state_path else ""
    size = megabytes(sum(source.size for source in checkpoint.sources))
    files = len(checkpoint.sources)
    return [
        ("family", model.title + (f" ({model.family})" if model.family else "")),
        ("container", checkpoint.container + lab + state),
        ("layout", f"names of {naming.layout}" + (f", under the prefix {naming.prefix!r}" if naming.prefix else "")),
        ("size", f"{size} in {amount(files, 'file')}"),
        ("parameters", f"{checkpoint.parameters:,} in {amount(len(checkpoint.tensors), 'tensor')}"),
        ("element types", ", ".join(f"{name} ({count})" for name, count in _count_dtypes(checkpoint).items())),
        *([("other weights", f"{', '.join(others)} (not opened; name one to open it)")] if others else []),
        *((f"blocks of the {stack}", _blocks(stack, naming)) for stack in naming.stacks),
        *([("encoders", _encoders(encoders, checkpoint))] if encoders else [("a merge uses", _used(naming))]),
        *([("adapter", adapter[0])] if adapter else []),
        *(("cannot be merged", problem) for problem in _problems(checkpoint, adapter)),
        *((f"cannot be read: {name}", why) for name, why in checkpoint.unreadable.items()),
        *((f"also holds {key}", what) for key, what in checkpoint.others.items()),
        *((f"metadata {key}", value) for key, value in checkpoint.metadata.items()),
    ]


def _problems(checkpoint: Checkpoint, adapter: tuple[str, bool] | None) -> list[str]:
    """Return why it cannot be merged; an adapter that can be folded is no reason, see `describe_adapter`."""
    return [] if adapter and adapter[1] else [finding.text for finding in judge_contents(checkpoint)]


def _encoders(names: list[str], checkpoint: Checkpoint) -> str:
    """Return which encoders a file holds, and how to name one."""
    return f"{', '.join(names)}: name one, as {checkpoint.reference}#{names[-1]}"


def _count_dtypes(checkpoint: Checkpoint) -> dict[str, int]:
    return dict(Counter(span.dtype.torch_name for span in checkpoint.tensors.values()))


def _used(naming: Naming) -> str:
    """Return how much of the checkpoint is interpolated, and which heads are not."""
    names = naming.under().values()
    heads = dict.fromkeys(".".join(name.canonical.split(".")[:-1]) or name.canonical for name in names if name.is_head)
    told = ", ".join(list(heads)[:6]) + (", ..." if len(heads) > 6 else "")
    used = f"{naming.parameters():,} parameters in {amount(sum(not name.location.stays for name in names), 'tensor')}"
    return used + (f"; not the heads {told}" if heads else "")


def _blocks(stack: str, naming: Naming) -> str:
    """Return how many blocks a stack has, and the selector of all of them."""
    blocks = naming.stacks[stack]
    named = "" if stack == main_stack(naming.stacks) else f"{stack}."
    stays = ", and else left alone" if is_language_model(stack) else ""
    return f"{len(blocks)}: {named}{blocks[0]}-{blocks[-1]} in --layer-alpha{stays}"
