"""Records in `speechft_merge.json`, beside the weights, what was merged and how to make it again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.json_text import read_json
from speechft_merge.errors import SpeechFTMergeError
from speechft_merge.plan.findings import texts
from speechft_merge.plan.plan import Action
from speechft_merge.record.codec import from_json
from speechft_merge.record.identity import FORMAT, fingerprint
from speechft_merge.record.layers import LayerRow, summarise_layers
from speechft_merge.sources import HubOrigin
from speechft_merge.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.executor.drift import Drift
    from speechft_merge.options import MergeOptions
    from speechft_merge.plan.findings import Finding
    from speechft_merge.plan.plan import Plan

NAME = "speechft_merge.json"
SIMILARITY = "similarity.json"
FIGURE = "similarity.png"
"""Files that a comparison adds to an output; the manifest does not cover them."""

_PLAIN = re.compile(r"(\w[\w.-]*/)?\w[\w.+-]*", re.ASCII)
"""Names of the files that a merge writes, at most in one folder of the output; none leads out of it."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One weights file of an input."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class InputRecord:
    """What identifies an input, and what it was called."""

    reference: str
    hub: HubOrigin | None
    container: str
    lab: str | None
    files: tuple[InputFile, ...]
    tensors: int
    parameters: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """A weights file of the output."""

    file: str
    size: int
    xxh128: str
    """XXH3 of 128 bits, as `xxhsum -H2` prints it."""

    def __post_init__(self) -> None:
        _require_plain(self.file)


@dataclass(frozen=True, slots=True)
class CompanionEntry:
    """A small file beside the weights."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        _require_plain(self.file)


def is_plain(name: str) -> bool:
    """Return whether a file of an output may have this name."""
    return _PLAIN.fullmatch(name) is not None


def _require_plain(name: str) -> None:
    if not is_plain(name):
        raise ValueError(f"{name!r} is not a file that a merge writes")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor of an input that the output lacks."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """The record of one merge; its `recipe` can be passed to `--recipe` as it is."""

    format: int
    speechft_merge: str
    """Version of speechft-merge that made it."""
    merge_id: str
    command: tuple[str, ...]
    recipe: dict[str, Any]
    max_shard_size: int | None
    """Most bytes of a weights file; None for a single file."""
    base: InputRecord
    finetuned: tuple[InputRecord, ...]
    counts: dict[str, int]
    coverage: float
    layers: tuple[LayerRow, ...]
    identical: tuple[str, ...]
    not_interpolated: dict[str, str]
    """Name -> reason."""
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    """Notes and warnings of the merge."""
    outputs: tuple[OutputEntry, ...]
    companions: tuple[CompanionEntry, ...]
    evidence: dict[str, Any] | None = None
    """Why this alpha, where a sweep chose it; see `Evidence`."""

    def __repr__(self) -> str:
        return f"<Manifest of merge {self.merge_id[:12]}: {len(self.layers)} layers, {len(self.outputs)} weights files>"

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return asdict(self)

    def encode(self) -> bytes:
        """Return the file's content."""
        return (json.dumps(self.to_json(), indent=2, ensure_ascii=True) + "\n").encode()


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of an output; None if there is no usable one."""
    try:
        return from_json(Manifest, _read_json(folder))
    except ValueError:
        return None


def read_names(folder: Path) -> set[str]:
    """Return the names of an output's files by its manifest, of any version; empty without one."""
    document = _read_json(folder)
    listed = [document.get(key) for key in ("outputs", "companions")] if isinstance(document, dict) else []
    entries = [entry for entries in listed if isinstance(entries, list) for entry in entries]
    names = [entry.get("file") for entry in entries if isinstance(entry, dict)]
    return {name for name in names if isinstance(name, str) and is_plain(name)}


def _read_json(folder: Path) -> Any:
    """Return the content of a manifest; None where there is none, or it is not JSON."""
    try:
        return read_json(folder / NAME)
    except SpeechFTMergeError:
        return None


def describe_input(checkpoint: Checkpoint) -> InputRecord:
    """Record an input; a little of its weights is read for the fingerprint."""
    return InputRecord(
        reference=checkpoint.reference,
        hub=checkpoint.hub,
        container=checkpoint.container,
        lab=checkpoint.origin.lab if checkpoint.origin else None,
        files=tuple(InputFile(source.name.rpartition("/")[2], source.size) for source in checkpoint.sources),
        tensors=len(checkpoint.held),
        parameters=checkpoint.parameters,
        fingerprint=fingerprint(checkpoint),
    )


@dataclass(frozen=True, slots=True)
class Written:
    """What a merge wrote, and measured on the way."""

    outputs: tuple[OutputEntry, ...]
    companions: Mapping[str, bytes]
    drifts: Mapping[str, Drift]
    """Output name -> drift of each interpolated tensor."""


def make_manifest(
    plan: Plan, merge_id: str, inputs: Sequence[InputRecord], written: Written, findings: Sequence[Finding],
    options: MergeOptions,
) -> Manifest:  # fmt: skip
    """Make the record of a merge."""
    identical = sorted(name for name, drift in written.drifts.items() if not drift.changed)
    return Manifest(
        format=FORMAT,
        speechft_merge=__version__,
        merge_id=merge_id,
        command=tuple(options.command),
        recipe=plan.recipe.to_json(),
        max_shard_size=options.max_shard_size,
        base=inputs[0],
        finetuned=tuple(inputs[1:]),
        counts=plan.counts | {"identical": len(identical)},
        coverage=min(plan.coverages),
        layers=tuple(summarise_layers(plan, dict(written.drifts))),
        identical=tuple(identical),
        not_interpolated={t.name: t.reason for t in plan.tensors if t.action is not Action.INTERPOLATED},
        left_out=tuple(LeftOut(tensor.name, tensor.reason) for tensor in plan.left_out),
        warnings=texts(findings),
        outputs=written.outputs,
        companions=tuple(
            CompanionEntry(name, hashlib.sha256(content).hexdigest())
            for name, content in sorted(written.companions.items())
        ),
        evidence=None if options.evidence is None else options.evidence.to_json(),
    )
