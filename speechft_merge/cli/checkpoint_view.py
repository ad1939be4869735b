"""What `inspect` shows of one checkpoint."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.opening import other_weights
from speechft_merge.cli.sink import Table, View
from speechft_merge.cli.text import megabytes
from speechft_merge.layouts.structure import place_of
from speechft_merge.layouts.view import transformers_view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.layouts.view import TransformersView


@dataclass(frozen=True, slots=True)
class CheckpointView(View):
    """The index of one checkpoint."""

    checkpoint: Checkpoint

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        checkpoint, view = self.checkpoint, transformers_view(self.checkpoint)
        return {
            "reference": checkpoint.reference,
            "container": checkpoint.container,
            "lab": checkpoint.origin.lab if checkpoint.origin else None,
            "layout": view.layout,
            "family": view.title,
            "model_type": view.family,
            "files": [{"file": source.name, "size": source.size} for source in checkpoint.sources],
            "other_weights": other_weights(checkpoint),
            "state_dict": checkpoint.state_path or None,
            "parameters": checkpoint.parameters,
            "dtypes": _count_dtypes(checkpoint),
            "merge": {
                "prefix": view.prefix,
                "tensors": len(view.tensors),
                "parameters": sum(span.elements for span in view.tensors.values()),
                "heads": [own for own, name in view.names.items() if name in view.heads],
            },
            "tensors": {
                name: {
                    "dtype": span.dtype.torch_name,
                    "shape": list(span.shape),
                    "file": span.source.name,
                    "offset": span.offset,
                    "transformers": view.names[name],
                }
                for name, span in checkpoint.tensors.items()
            },
            "unreadable": checkpoint.unreadable,
            "others": checkpoint.others,
            "metadata": checkpoint.metadata,
        }

    def body(self, verbose: int) -> Iterator[Table | str]:
        """Yield a table of facts, and with `-v` one of the tensors."""
        view = transformers_view(self.checkpoint)
        yield Table(["", self.checkpoint.reference], _facts(self.checkpoint, view))
        if verbose:
            rows = [
                [name, span.dtype.torch_name, " x ".join(map(str, span.shape)) or "()", _part(view, name)]
                for name, span in self.checkpoint.tensors.items()
            ]
            yield Table(["tensor", "type", "shape", "part"], rows)


def _facts(checkpoint: Checkpoint, view: TransformersView) -> list[tuple[str, str]]:
    others = other_weights(checkpoint)
    lab = f" ({checkpoint.origin.lab})" if checkpoint.origin else ""
    state = f", state dict at {checkpoint.state_path!r}" if checkpoint.state_path else ""
    size = megabytes(sum(source.size for source in checkpoint.sources))
    files = len(checkpoint.sources)
    return [
        ("family", view.title + (f" ({view.family})" if view.family else "")),
        ("container", checkpoint.container + lab + state),
        ("layout", f"names of {view.layout}" + (f", under the prefix {view.prefix!r}" if view.prefix else "")),
        ("size", f"{size} in {files} file{'s' * (files != 1)}"),
        ("parameters", f"{checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors"),
        ("element types", ", ".join(f"{name} ({count})" for name, count in _count_dtypes(checkpoint).items())),
        *([("other weights", f"{', '.join(others)} (not opened; name one to open it)")] if others else []),
        ("a merge uses", _used(view)),
        *((f"cannot be read: {name}", why) for name, why in checkpoint.unreadable.items()),
        *((f"also holds {key}", what) for key, what in checkpoint.others.items()),
        *((f"metadata {key}", value) for key, value in checkpoint.metadata.items()),
    ]


def _count_dtypes(checkpoint: Checkpoint) -> dict[str, int]:
    return dict(Counter(span.dtype.torch_name for span in checkpoint.tensors.values()))


def _used(view: TransformersView) -> str:
    """Return what of the checkpoint is interpolated, and which heads are not."""
    parameters = sum(span.elements for span in view.tensors.values())
    heads = dict.fromkeys(".".join(name.split(".")[:-1]) or name for name in view.heads)
    told = ", ".join(list(heads)[:6]) + (", ..." if len(heads) > 6 else "")
    return f"{parameters:,} parameters in {len(view.tensors)} tensors" + (f"; not the heads {told}" if heads else "")


def _part(view: TransformersView, name: str) -> str:
    short = view.names[name]
    return place_of(short).part if short in view.tensors else "head"
