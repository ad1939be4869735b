"""`speechft_merge.json` beside the weights: what was merged, how to make it again, and the proof that it was this."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import OutputError
from speechft_merge.output.staging import matches
from speechft_merge.plan.plan import Action
from speechft_merge.record import card
from speechft_merge.record.fingerprint import fingerprint
from speechft_merge.record.layers import summarise_layers
from speechft_merge.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.executor.drift import Drift
    from speechft_merge.output.files import OutputFiles
    from speechft_merge.plan.plan import Plan

NAME = "speechft_merge.json"
SIMILARITY = "similarity.json"
FIGURE = "similarity.png"
"""What a comparison adds to a merge; the manifest does not vouch for them."""
FORMAT = 1
"""Of the manifest, and of the arithmetic: raised when the same recipe would give other bytes."""


def describe_input(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies an input, and what it was called."""
    return {
        "reference": checkpoint.reference,
        **({"hub": checkpoint.folder.origin} if checkpoint.folder and checkpoint.folder.origin else {}),
        "container": checkpoint.container,
        **({"lab": checkpoint.origin.lab} if checkpoint.origin else {}),
        "files": [{"file": source.name.rpartition("/")[2], "size": source.size} for source in checkpoint.sources],
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "fingerprint": fingerprint(checkpoint),
    }


def identify(plan: Plan, files: OutputFiles, inputs: Sequence[dict[str, Any]], companions: dict[str, bytes]) -> str:
    """A digest that two merges share if, and only if, they are the same: same weights in, recipe and files out."""
    content = {
        "format": FORMAT,
        "recipe": plan.recipe.to_json(),
        "inputs": [entry["fingerprint"] for entry in inputs],
        "files": files.digest,
        "companions": {name: hashlib.sha256(text).hexdigest() for name, text in sorted(companions.items())},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_manifest(
    plan: Plan, merge_id: str, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]],
    drifts: dict[str, Drift], companions: dict[str, bytes], command: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The manifest as a JSON document; its `recipe` can be given to `--recipe` as it stands."""
    identical = sorted(name for name, drift in drifts.items() if not drift.changed)
    return {
        "format": FORMAT,
        "speechft_merge": __version__,
        "merge_id": merge_id,
        "command": list(command),
        "recipe": plan.recipe.to_json(),
        "base": inputs[0],
        "finetuned": list(inputs[1:]),
        "counts": plan.counts | {"identical": len(identical)},
        "coverage": min(plan.coverages),
        "layers": [row.to_json() for row in summarise_layers(plan, drifts)],
        "identical": identical,
        "not_interpolated": {t.name: t.reason for t in plan.tensors if t.action is not Action.INTERPOLATED},
        "left_out": [{"tensor": tensor.name, "reason": tensor.reason} for tensor in plan.left_out],
        "outputs": list(outputs),
        "companions": [
            {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(companions.items())
        ],
    }


def proves(folder: Path, merge_id: str) -> bool:
    """Whether `folder` holds the finished output of this very merge, every file of it whole.

    All but the card: its text is the user's to edit.
    """
    manifest = _read(folder)
    return (
        manifest.get("merge_id") == merge_id
        and all(matches(folder, entry) for entry in manifest["outputs"])
        and all(_has_digest(folder / entry["file"], entry["sha256"]) for entry in manifest["companions"])
    )


def _read(folder: Path) -> dict[str, Any]:
    """A manifest that can be used; empty if there is none."""
    try:
        manifest = json.loads((folder / NAME).read_text())
        entries = [*manifest["outputs"], *manifest["companions"]]
        usable = all(isinstance(entry["file"], str) and "/" not in entry["file"] for entry in entries)
        return manifest if usable and all("sha256" in entry for entry in manifest["companions"]) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def require_replaceable(output: Path, force: bool) -> None:
    """Refuse an output that is there, unless it is empty, or was made by a merge and may be replaced.

    Raises:
        OutputError: it may not be replaced, or it holds files that no merge wrote, which would be lost.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir():
        raise OutputError(f"{output} is there and is not a directory; choose another output (-o)")
    names = {path.name for path in output.iterdir()}
    foreign = sorted(names - _written(output)) if names else []
    if foreign:
        listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OutputError(
            f"{output} is there and holds files that no merge wrote ({listed}); move them, or choose another -o"
        )
    if names and not force:
        raise OutputError(f"{output} holds another merge; say --force to replace it, or choose another output (-o)")


def _written(folder: Path) -> set[str]:
    """Names of the files that a merge wrote into a folder, by its manifest."""
    manifest = _read(folder)
    entries = [*manifest["outputs"], *manifest["companions"]] if manifest else []
    names = {NAME, card.NAME, SIMILARITY, FIGURE}
    return names | {entry["file"] for entry in entries} if manifest else set()


def encode(manifest: dict[str, Any]) -> bytes:
    """The file's content."""
    return (json.dumps(manifest, indent=2, ensure_ascii=True) + "\n").encode()
