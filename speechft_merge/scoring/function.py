"""Scores a live model by a user's Python function."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import operator
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_merge.errors import ScoreError, UsageError, quote
from speechft_merge.scoring.answers import parse_name, score_of_number, scores_of_records, sub_score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from speechft_merge.scoring.scorer import Candidate
    from speechft_merge.scoring.scores import Better, Score


class FunctionScorer:
    """Scores what `function(model, processor)` returns: a number, records, or a dict of several such by name."""

    notes: Sequence[str] = ()
    needs_model = True
    needs_files = False

    def __init__(self, name: str, better: Better, target: str) -> None:
        """Import the function that `target`, MODULE:FUNCTION, names.

        Raises:
            UsageError: there is no such module or function.
            ScoreError: the module cannot be imported.
        """
        self.name, self.better = name, better
        self.names: dict[str, Better] = {}
        file, self._function = _find(name, target)
        source = file.read_bytes() if file.is_file() else b""
        self.description: dict[str, Any] = {
            "kind": "python", "name": name, "better": better.value, "function": target,
            "sha256": hashlib.sha256(source).hexdigest(),
        }  # fmt: skip

    def score(self, candidate: Candidate) -> list[Score]:
        """Call the function and return its scores.

        Raises:
            ScoreError: it raises, or returns something else.
        """
        model, processor = candidate.model, copy.deepcopy(candidate.processor)
        settings = copy.deepcopy(getattr(model, "generation_config", None))
        with _blaming(self.name), _working_directory(), contextlib.redirect_stdout(sys.stderr):
            result = self._function(model, processor)
            several = isinstance(result, Mapping)
            # a generator's errors are the function's
            results = [(key, _gathered(each)) for key, each in (result.items() if several else [(None, result)])]
        model.eval()  # as the next score expects it
        if settings is not None:
            model.generation_config = settings
        if not results:
            raise ScoreError(f"{self.name} returned no score")
        scores = []
        for key, each in results:
            name = sub_score(self.name, key) if several else self.name
            if isinstance(each, list):
                scores += scores_of_records(name, self.better, each)
            else:
                scores.append(score_of_number(name, self.better, each))
        return scores


def parse_function_score(text: str) -> FunctionScorer:
    """Parse `MODULE:FUNCTION`, `NAME=MODULE:FUNCTION` or `NAME:lower=MODULE:FUNCTION`, and import the function.

    Raises:
        UsageError: it is not of this form, or names nothing.
        ScoreError: the module cannot be imported.
    """
    head, equals, target = text.rpartition("=")
    module, _, function = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise UsageError(
            f"{quote(text)} is not [NAME=]MODULE:FUNCTION", hint="write it as --score-python wer:lower=evaluate:wer"
        )
    name, better = parse_name(head if equals else function.rpartition(".")[2])
    return FunctionScorer(name, better, target)


def _find(name: str, target: str) -> tuple[Path, Callable[[Any, Any], Any]]:
    """Return the file of a module, and its function."""
    module, _, attribute = target.partition(":")
    with _blaming(name), _working_directory():
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # it imports what is not installed
                raise
            hint = "it is looked for in the working directory, then among the installed packages"
            raise UsageError(f"there is no module {error.name}", hint=hint) from None
    file = Path(getattr(imported, "__file__", None) or module)
    try:
        function: Callable[[Any, Any], Any] = operator.attrgetter(attribute)(imported)
    except AttributeError:
        raise UsageError(f"{file} has no function {attribute}") from None
    return file, function


@contextlib.contextmanager
def _working_directory() -> Iterator[None]:
    """Let modules be imported from the working directory, first of all: here the user names one of them."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Turn what the user's code raises into an error that names the last line of theirs which was at work."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, error.lineno))
        theirs = [frame for frame in frames if _is_theirs(Path(frame[0]))] or frames
        file, line = theirs[-1]
        said = f"{name}: {Path(file).name}, line {line}: {type(error).__name__}: {error}"
        raise ScoreError(said.removesuffix(": ")) from error


def _is_theirs(file: Path) -> bool:
    return file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts and file != Path(__file__)


def _gathered(result: Any) -> Any:
    """Return an iterable of records as a list; a number, and what is wrong, as it is."""
    if isinstance(result, (str, bytes, Mapping)) or getattr(result, "shape", None) == ():
        return result
    return [*result] if isinstance(result, Iterable) else result
