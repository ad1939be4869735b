"""Lists the files of an output that are pushed, and takes the paths of this machine out of those that we wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.json_text import read_json
from speechft_merge.errors import CheckpointError, NotFoundError
from speechft_merge.record import card, manifest
from speechft_merge.sources.nearby import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def list_outgoing(folder: Path) -> dict[str, Path]:
    """Return name in the repository -> path of every file of an output, with those that its owner added by hand.

    Hidden files are left out.

    Raises:
        NotFoundError: the folder is not the output of a merge.
        CheckpointError: a link leads out of the folder, to what may be meant for nobody else.
    """
    if not (folder / manifest.NAME).is_file():
        raise NotFoundError(
            f"{folder} is not the output of a merge (no {manifest.NAME} in it)", found=nearest(str(folder))
        )
    root, found = folder.resolve(), {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(
                f"{path} is a link that leads out of the folder, so nothing is pushed",
                found=f"a link to {path.resolve()}",
                hint="put the file itself in its place, or remove the link",
            )
        if path.is_file():
            found[name.as_posix()] = path
    return found


def clean_contents(outgoing: Mapping[str, Path]) -> dict[str, bytes]:
    """Return the files that we wrote as the Hub gets them: manifest, card and report without paths of this machine.

    A path is shortened to its last part, as in the card. The output itself keeps the references as they were given.

    Raises:
        CheckpointError: the manifest or the report is not a JSON object.
    """
    record = _read_json(outgoing[manifest.NAME])
    command, references = _list(record.get("command")), [*_references(record)]
    shorten = card.shortener([*command, *references])
    cleaned = {manifest.NAME: _encode(_clean(record | {"command": [*map(card.short, command)]}, shorten))}
    if manifest.SIMILARITY in outgoing:
        cleaned[manifest.SIMILARITY] = _encode(_clean(_read_json(outgoing[manifest.SIMILARITY]), shorten))
    if card.NAME in outgoing:
        text = outgoing[card.NAME].read_bytes().decode(errors="surrogateescape")
        cleaned[card.NAME] = shorten(text).encode(errors="surrogateescape")
    return cleaned


def _references(record: dict[str, Any]) -> Iterator[str]:
    for entry in (record.get("base"), *_list(record.get("finetuned"))):
        if isinstance(entry, dict):
            yield str(entry.get("reference"))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _clean(value: Any, shorten: Callable[[str], str]) -> Any:
    """Return a JSON document with every path in it shortened."""
    if isinstance(value, dict):
        return {key: _clean(inner, shorten) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner, shorten) for inner in value]
    return shorten(value) if isinstance(value, str) else value


def _read_json(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not what a merge wrote, so nothing is pushed", found=type(found).__name__)
    return found


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode()
