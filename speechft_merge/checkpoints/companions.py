"""Reads the small files beside the weights: configuration, feature extractor, tokenizer, and code that they name."""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.sources import Folder

CONFIG = "config.json"
FEATURE_EXTRACTOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
"""Where transformers 5 keeps a feature extractor's settings, under `feature_extractor`."""
TOKENIZER = "tokenizer_config.json"

_NAMING = (CONFIG, FEATURE_EXTRACTOR, PROCESSOR, TOKENIZER)
"""Files that name others: by `auto_map` the code of classes, or in any value."""

_TOKENIZERS = re.compile(
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab.*\.(json|txt|bpe)|merges\.txt"
    r"|normalizer\.json|alphabet\.json|bpe\.codes|.*\.(spm|tiktoken)|(spm|spiece|sentencepiece|unigram).*\.model"
)
_OTHERS = re.compile(
    r"(config|preprocessor_config|processor_config|generation_config|feature_extractor_config|chat_template)\.json"
    r"|chat_template\.jinja"
)
_FOLDERS = ("language_model", "additional_chat_templates", "custom_generate")
"""Folders that classes of transformers load by name: Wav2Vec2ProcessorWithLM, chat templates, custom generation."""

_POINTER = b"version https://git-lfs"

MAX_SIZE = 64 << 20
"""Most bytes of one; Whisper's tokenizer.json has 2.5 MB."""
MAX_NAMED = 256
"""Most files that a model names, and most values of a JSON file that are looked at, by the thousand."""


class Companions(NamedTuple):
    """The small files of a model."""

    files: dict[str, bytes]
    """Name -> content; one in a folder of its own has the folder's name before it."""
    large: tuple[str, ...]
    """Those of more than `MAX_SIZE`, which are not read."""

    def settings(self, name: str, reference: str) -> dict[str, Any]:
        """Return the JSON object in one of them; empty if there is none.

        Raises:
            CheckpointError: it is not JSON, or not an object.
        """
        return parse_companion(self.files[name], reference, name) if name in self.files else {}


def is_tokenizer(name: str) -> bool:
    """Return whether a file is one of a tokenizer's."""
    return _TOKENIZERS.fullmatch(name) is not None


def is_companion(name: str) -> bool:
    """Return whether transformers loads a file, or one in a folder, by its name when it loads a model."""
    folder, slash, _ = name.partition("/")
    return folder in _FOLDERS if slash else is_tokenizer(name) or _OTHERS.fullmatch(name) is not None


def read_all_companions(checkpoint: Checkpoint) -> Companions:
    """Read every small file that belongs to a model: by its name, or named in a configuration or by code.

    Raises:
        CheckpointError: one is a pointer of Git LFS, or is not JSON where it should be.
    """
    folder = checkpoint.folder
    if folder is None:
        return Companions({}, ())
    there = folder.names()
    found = _read(folder, [name for name in there if is_companion(name)])
    found = _with(found, _read(folder, [name for inner in _FOLDERS for name in folder.names(inner)]))
    for naming in _NAMING:
        settings = found.settings(naming, checkpoint.reference)
        named = [word for word in _words(settings) if word in there and _may_be_companion(word, checkpoint)]
        found = _with(found, _read(folder, [name for name in named if name not in found.files]))
    modules = [f"{name}.py" for naming in _NAMING for name in modules_of(found.settings(naming, checkpoint.reference))]
    return _with(found, _read_code(folder, modules, there))


def read_companion_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Read a JSON object from beside the weights; empty if there is no such file.

    Raises:
        CheckpointError: it is too large, not JSON, or not an object, or only a pointer of Git LFS.
    """
    if checkpoint.folder is None or name not in checkpoint.folder.names():
        return {}
    found = _read(checkpoint.folder, [name])
    if found.large:
        raise CheckpointError(
            f"{checkpoint.folder.name}/{name} has more than {MAX_SIZE} bytes, at most these are allowed"
        )
    return found.settings(name, checkpoint.reference)


def read_extractor(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the settings of a model's feature extractor, from either of their files; empty if there are none.

    Raises:
        CheckpointError: see `read_companion_json`.
    """
    inner = read_companion_json(checkpoint, PROCESSOR).get("feature_extractor")
    return inner if isinstance(inner, dict) and inner else read_companion_json(checkpoint, FEATURE_EXTRACTOR)


def modules_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the modules beside the weights whose classes `auto_map` names."""
    classes = settings.get("auto_map")
    values = classes.values() if isinstance(classes, dict) else ()
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [name.partition(".")[0] for name in names if isinstance(name, str) and "--" not in name]


def parse_companion(content: bytes, reference: str, name: str) -> dict[str, Any]:
    """Parse the JSON object in a companion called `name`.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{reference}: its {name} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{reference}: its {name} holds a {type(parsed).__name__}, expected an object")
    return parsed


def encode_companion(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the content of a companion; half a surrogate pair, which JSON may hold, is escaped."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _read(folder: Folder, names: Iterable[str]) -> Companions:
    files: dict[str, bytes] = {}
    large = []
    for name in list(dict.fromkeys(names))[:MAX_NAMED]:
        if folder.leads_out(name):
            raise CheckpointError(
                f"{folder.name}/{name} is a link that leads out of the model's folder", hint="put the file itself there"
            )
        with folder.open(name) as source:
            if source.size > MAX_SIZE:
                large.append(name)
                continue
            files[name] = source.read(0, source.size)
        if files[name].startswith(_POINTER):
            raise CheckpointError(
                f"{folder.name}/{name} is a Git LFS pointer, not the file itself", hint="run git lfs pull"
            )
    return Companions(files, tuple(large))


def _with(found: Companions, more: Companions) -> Companions:
    return Companions(found.files | more.files, (*found.large, *more.large))


def _words(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value, at most a thousand times `MAX_NAMED` of them."""
    todo = [value]
    for _ in range(1000 * MAX_NAMED):
        if not todo:
            return
        match todo.pop():
            case str(text):
                yield text
            case dict(inner):
                todo += inner.values()
            case list(inner):
                todo += inner


def _may_be_companion(name: str, checkpoint: Checkpoint) -> bool:
    """Return whether a file that a configuration names is not of the weights."""
    return name != checkpoint.file and not name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack"))


def _read_code(folder: Folder, modules: Iterable[str], there: Collection[str]) -> Companions:
    """Read modules and what they import from beside them; parsed, never executed."""
    found = Companions({}, ())
    todo = [name for name in modules if name in there]
    while todo and len(found.files) < MAX_NAMED:
        more = _read(folder, [name for name in todo if name not in found.files])
        found = _with(found, more)
        todo = [name for content in more.files.values() for name in _imports(content) if name in there]
    return found


def _imports(code: bytes) -> list[str]:
    """Return the files that a module imports from its own folder: `from .other import x`, `from . import other`."""
    try:
        nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) and node.level == 1]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = [node.module or imported.name for node in nodes for imported in node.names]
    return [f"{name.partition('.')[0]}.py" for name in names]
