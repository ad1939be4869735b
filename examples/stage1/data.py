"""Recordings of any of three kinds, dealt out to training, development and test: three tables that everything reads."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from speechft_merge.errors import CheckpointError, NotFoundError, UsageError
from speechft_merge.output.folder import write_whole
from speechft_merge.scoring.clips import Clip, read_table
from speechft_merge.scoring.folds import assign_folds
from speechft_merge.scoring.probe_task import read_classes
from speechft_merge.scoring.transcripts import normalise, read_transcribed
from speechft_merge.similarity.audio import LONGEST, read_clip, seconds_of
from speechft_merge.similarity.grouping import read_rows
from speechft_merge.similarity.inputs import RATE

SPLITS = ("train", "dev", "test")
LABEL, TEXT = "label", "text"
"""What the second column of a table is called: a class, or what is said."""
SHORTEST = 0.1
"""Seconds below which a recording is left out: a model has no frame of it, or hardly one."""
FOLDS = 10
"""Where there is no test set, or no development set, a tenth of the speakers (or files) becomes one."""

_NAMED = re.compile(r"(train|dev|valid|validation|eval|test)(?![a-z])", re.IGNORECASE)
"""A split by its name: `dev-clean`, `validation`, `test.other`."""
_COLUMNS = {LABEL: ("label", "class", "emotion", "intent"), TEXT: ("text", "sentence", "transcription", "transcript")}
"""Columns of a dataset that are looked for."""
_GROUPS = ("group", "speaker_id", "speaker", "client_id")

Splits = dict[str, list[Clip]]
"""`train`, `dev` or `test` -> recordings; all are `train` where the source has no splits."""


def prepare(source: str, column: str, out: Path, told: Callable[[str], None]) -> Splits:
    """Read train.tsv, dev.tsv and test.tsv of a run's folder; write them first where they are not there."""
    tables = {split: out / f"{split}.tsv" for split in SPLITS}
    if not all(table.exists() for table in tables.values()):
        whole = deal(usable(read_source(source, column, out), column, told), column, told)
        for split, table in tables.items():
            rows = [(clip.path.resolve(), clip.label, clip.group) for clip in whole[split]]
            lines = ["\t".join(("path", column, "group")), *("\t".join(map(str, row)) for row in rows)]
            write_whole(table, ("\n".join(lines) + "\n").encode())
    return {split: read_table(table, column) for split, table in tables.items()}


# where recordings come from
def read_source(source: str, column: str, out: Path) -> Splits:
    """The recordings of a folder, a table, or a dataset: a folder that `save_to_disk` wrote, or `org/name[:config]`."""
    path = Path(source)
    if path.is_dir() and not (path / "dataset_dict.json").exists() and not (path / "dataset_info.json").exists():
        return read_folder(path, column)
    if path.is_file():
        return read_splits(path, column)
    if not path.exists() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", source):
        raise NotFoundError(f"there is no folder or table {source}", hint="or name a dataset: org/name[:config]")
    return read_dataset(source, column, out / "audio")


def read_folder(folder: Path, column: str) -> Splits:
    """Of a folder: with a folder a class, or texts beside the audio; in it, or in folders that are named as splits."""
    read = read_classes if column == LABEL else read_transcribed
    named = {inner: split for inner in sorted(folder.iterdir()) if inner.is_dir() and (split := split_of(inner.name))}
    if "train" not in named.values():
        return {"train": read(folder)}
    found: Splits = {}
    for inner, split in named.items():
        found.setdefault(split, []).extend(read(inner))
    return found


def read_splits(table: Path, column: str) -> Splits:
    """Of a table as the package reads it, or of one whose first line names its columns, `path` among them."""
    rows = read_rows(table)
    names = rows[0][1] if rows else []
    if "path" not in names:
        return {"train": read_table(table, column)}
    if column not in names:
        raise CheckpointError(f"{table} has no column {column}", found=", ".join(names))
    found: Splits = {}
    for number, cells in rows[1:]:
        row = dict(zip(names, cells, strict=False))
        path, label = row.get("path"), row.get(column)
        split = split_of(row.get("split", "")) if "split" in names else "train"
        if split is None or not path or not label:
            raise CheckpointError(f"{table}, line {number} lacks a path, a {column} or a split (train, dev, test)")
        found.setdefault(split, []).append(Clip(path, table.parent / path, label, row.get("group") or path))
    missing = [clip.path for clips in found.values() for clip in clips if not clip.path.is_file()]
    if missing:
        raise NotFoundError(f"{table}: {len(missing)} files do not exist, first {missing[0]}")
    return found


def read_dataset(source: str, column: str, folder: Path) -> Splits:
    """Of a dataset of `datasets`; audio that lies in its files is written out as it is, once."""
    if importlib.util.find_spec("datasets") is None:
        raise UsageError("datasets is not installed", hint="run pip install datasets, or give a folder or a table")
    import datasets

    try:
        if Path(source).exists():
            loaded: Any = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(*source.split(":"))
    except Exception as error:  # the Hub, or a foreign dataset, may raise anything
        raise NotFoundError(f"there is no folder, table or dataset {source}: {str(error).splitlines()[0]}") from error
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    found: Splits = {}
    for name, part in parts.items():
        features = part.features
        audio = next((key for key, kind in features.items() if isinstance(kind, datasets.Audio)), None)
        wanted = next((key for key in _COLUMNS[column] if key in features), None)
        if audio is None or wanted is None:
            need = f"a column of audio and one called {' or '.join(_COLUMNS[column])}"
            raise CheckpointError(f"{source} does not have {need}", found=", ".join(features))
        group = next((key for key in _GROUPS if key in features), None)
        classes = getattr(features[wanted], "names", None)
        rows = part.cast_column(audio, datasets.Audio(decode=False))  # soundfile decodes, not torchcodec
        for number, row in enumerate(rows):
            path = written(row[audio], folder / name, number)
            label = row[wanted] if classes is None else classes[row[wanted]]
            speaker = path.name if group is None else str(row[group])
            found.setdefault(split_of(name) or "train", []).append(Clip(path.name, path, str(label), speaker))
    return found


def written(audio: dict[str, Any], folder: Path, number: int) -> Path:
    """The file of a dataset's audio, made where its bytes lie in the dataset."""
    own = Path(audio["path"] or "")
    if audio["bytes"] is None:
        return own
    file = folder / f"{number:07d}{own.suffix or '.wav'}"
    if not file.exists():
        write_whole(file, audio["bytes"])
    return file


def split_of(name: str) -> str | None:
    """The split that a name means."""
    found = _NAMED.match(name)
    if found is None:
        return None
    return {"train": "train", "test": "test"}.get(found[1].lower(), "dev")


# what is trained and tested on
def usable(splits: Splits, column: str, told: Callable[[str], None]) -> Splits:
    """Those recordings that can be used, each decoded for it; how many are left out, and why, is told.

    Labels are as they are compared.
    """
    reasons: dict[str, int] = {}
    seen: set[Path] = set()
    kept: Splits = {}
    for split, clips in splits.items():
        for clip in clips:
            label = normalise(clip.label) if column == TEXT else " ".join(clip.label.split())
            file = clip.path.resolve()
            why = "named twice" if file in seen else flaw(clip, column) if label else "without a word"
            seen.add(file)
            if why:
                reasons[why] = reasons.get(why, 0) + 1
            else:
                kept.setdefault(split, []).append(Clip(clip.id, clip.path, label, " ".join(clip.group.split())))
    for why, count in reasons.items():
        told(f"{count} of {sum(map(len, splits.values()))} recordings are left out: {why}")
    return kept


def flaw(clip: Clip, column: str) -> str | None:
    """Why a recording cannot be used."""
    if re.search(r"[\t\n\r\ud800-\udfff]", str(clip.path.resolve())):
        return "its name has a tab, a line end or what is not UTF-8, which no table can hold"
    try:
        seconds = seconds_of(clip.path)
        read_clip(clip.path, RATE)
    except CheckpointError as error:
        return str(error).removeprefix(f"{clip.path} ")
    if seconds < SHORTEST:
        return f"below {SHORTEST:g} s"
    return f"above {LONGEST:g} s" if column == TEXT and seconds > LONGEST else None


def within(clips: list[Clip], column: str, seconds: float, told: Callable[[str], None]) -> list[Clip]:
    """Those to train on: of a class the first seconds are enough, but a text must not be parted from its recording."""
    if column == LABEL:
        return clips
    kept = [clip for clip in clips if seconds_of(clip.path) <= seconds]
    if len(kept) < len(clips):
        told(f"{len(clips) - len(kept)} of {len(clips)} recordings are left out of training: above {seconds:g} s")
    if not kept:
        raise CheckpointError(f"no recording to train on is below {seconds:g} s", hint="pass --seconds 30")
    return kept


def deal(splits: Splits, column: str, told: Callable[[str], None]) -> Splits:
    """Make the splits that are missing from the training set: whole groups, each class spread evenly."""
    pool = splits.get("train", [])
    lacking = [split for split in ("test", "dev") if not splits.get(split)]
    labels = [clip.label if column == LABEL else "" for clip in pool]
    groups = [clip.group for clip in pool]
    if lacking and 0 < len({*groups}) < FOLDS:
        told(f"{len({*groups})} groups are too few to hold some out whole: files are held out, of the same speakers")
        groups = [str(clip.path) for clip in pool]
    folds = assign_folds(labels, groups, FOLDS)
    sizes = {fold: len({group for group, own in zip(groups, folds, strict=True) if own == fold}) for fold in {*folds}}
    held = dict(zip(sorted(sizes, key=lambda fold: -sizes[fold]), lacking, strict=False))  # those of the most groups
    whole = {split: [] for split in SPLITS} | splits | {"train": []}
    for clip, fold in zip(pool, folds, strict=True):
        whole[held.get(fold, "train")].append(clip)
    for split in SPLITS:
        if not whole[split]:
            raise CheckpointError(f"no recording is left for {split}", hint="give at least some ten recordings")
    if column == LABEL:
        require_classes(whole)
    return whole


def require_classes(whole: Splits) -> None:
    """Refuse to train on one class, or to test on one that was not trained."""
    trained = {clip.label for clip in whole["train"]}
    unknown = {clip.label for split in ("dev", "test") for clip in whole[split]} - trained
    if len(trained) < 2:
        raise CheckpointError(f"all recordings to train on are of one class, {next(iter(trained))!r}")
    if unknown:
        raise CheckpointError(f"no recording to train on is of class {min(unknown)!r}, which is tested")


class Recordings:
    """Recordings as torch's loader takes them: the samples of the first seconds, and the label."""

    def __init__(self, clips: Iterable[Clip], rate: int, seconds: float) -> None:
        self._clips, self._rate, self._seconds = [*clips], rate, seconds

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, place: int) -> tuple[Any, str]:
        clip = self._clips[place]
        return read_clip(clip.path, self._rate, self._seconds), clip.label
