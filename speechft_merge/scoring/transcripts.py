"""Reads recordings with what is said in them, and makes texts comparable."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from speechft_merge.errors import CheckpointError, NotFoundError, quote
from speechft_merge.scoring.clips import Clip
from speechft_merge.similarity.probe import find_audio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIBRISPEECH = re.compile(r"(\d+)-(\d+)-\d+")
"""SPEAKER-CHAPTER-UTTERANCE; the chapter's transcripts are in SPEAKER-CHAPTER.trans.txt."""
_APOSTROPHES = str.maketrans("\u2019\u02bc\uff07", "'''")


def normalise(text: str) -> str:
    """Return a text as it is compared: NFKC, case-folded, words with single blanks between them.

    Punctuation and symbols part words, but for an apostrophe between two letters, which stays.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_APOSTROPHES)
    text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    return " ".join("".join(c if c == "'" or unicodedata.category(c)[0] not in "PS" else " " for c in text).split())


def read_transcribed(folder: Path) -> list[Clip]:
    """Return the recordings of a folder, each with its text beside it: NAME.txt, or LibriSpeech's .trans.txt.

    The group is the speaker where all are named as LibriSpeech's; else the folder if there are several, else the file.

    Raises:
        NotFoundError: there is no audio file, or no text of one.
        CheckpointError: a text cannot be read.
    """
    paths = find_audio([folder])
    chapters: dict[Path, dict[str, str]] = {}
    texts = [_text_of(path, chapters) for path in paths]
    missing = [path for path, text in zip(paths, texts, strict=True) if text is None]
    if missing:
        raise NotFoundError(
            f"{folder}: {len(missing)} of {len(paths)} audio files have no text beside them, first {missing[0]}",
            hint=f"write what is said into {missing[0].with_suffix('.txt').name}, or give a table, path<TAB>text",
        )
    groups, ids = _groups(folder, paths), [path.relative_to(folder).as_posix() for path in paths]
    return sorted(Clip(*each) for each in zip(ids, paths, [text or "" for text in texts], groups, strict=True))


def _text_of(path: Path, chapters: dict[Path, dict[str, str]]) -> str | None:
    beside, named = path.with_suffix(".txt"), _LIBRISPEECH.fullmatch(path.stem)
    if beside.is_file():
        return _read(beside)
    if not named:
        return None
    chapter = path.with_name(f"{named[1]}-{named[2]}.trans.txt")
    if chapter not in chapters:
        lines = _read(chapter).split("\n") if chapter.is_file() else []
        chapters[chapter] = {name: text for name, _, text in (line.strip().partition(" ") for line in lines)}
    return chapters[chapter].get(path.stem)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text: {quote(str(error))}") from error


def _groups(folder: Path, paths: Sequence[Path]) -> list[str]:
    named = [_LIBRISPEECH.fullmatch(path.stem) for path in paths]
    if all(named):
        return [found[1] for found in named if found]
    several = len({path.parent for path in paths}) > 1
    return [(path.parent if several else path).relative_to(folder).as_posix() for path in paths]
