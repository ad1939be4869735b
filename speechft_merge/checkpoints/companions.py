"""Reads the small files beside the weights: configuration, feature extractor, tokenizer, and code that they name."""

from __future__ import annotations

import ast
import json
import re
from posixpath import normpath
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints.json_text import parse_json
from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from speechft_merge.checkpoints.index import Checkpoint
    from speechft_merge.sources import Folder

CONFIG = "config.json"
FEATURE_EXTRACTOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
"""Where transformers 5 keeps a feature extractor's settings, under `feature_extractor`."""
TOKENIZER = "tokenizer_config.json"
GENERATION = "generation_config.json"

_NAMING = (CONFIG, FEATURE_EXTRACTOR, PROCESSOR, TOKENIZER)
"""Files that name others: by `auto_map` the code of classes, or in any value."""

_TOKENIZERS = re.compile(
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab.*\.(json|txt|bpe)|merges\.txt"
    r"|normalizer\.json|alphabet\.json|bpe\.codes|.*\.(spm|tiktoken)|(spm|spiece|sentencepiece|unigram).*\.model"
)
_OTHERS = re.compile(r"(config|preprocessor_config|processor_config|generation_config|feature_extractor_config)\.json")
_CHAT_TEMPLATES = re.compile(r"chat_template\.(json|jinja)|additional_chat_templates/.*")
_FOLDERS = ("language_model", "additional_chat_templates", "custom_generate")
"""Folders that classes of transformers load by name: Wav2Vec2ProcessorWithLM, chat templates, custom generation."""

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|npz)|.*\.index\b.*\.json|adapter_config\.json"
)
"""Files that a configuration may name and that are no companions: they would be loaded beside the merged weights."""

_POINTER = b"version https://git-lfs"

MAX_SIZE = 64 << 20
"""Most bytes of one; Whisper's tokenizer.json has 2.5 MB."""
MAX_TOTAL = 2 * MAX_SIZE
"""Most bytes of all."""
MAX_NAMED = 256
"""Most files of one model."""
MAX_NAME = 255
"""Most characters of such a name."""
MAX_VALUES = 1000 * MAX_NAMED
"""Most values of a JSON file that are looked at; a tokenizer.json is not one of these."""


class Companions(NamedTuple):
    """The small files of a model."""

    files: dict[str, bytes]
    """Name -> content; one in a folder of its own has the folder's name before it."""
    large: tuple[str, ...]
    """Those that are not read, as they have more than `MAX_SIZE` bytes, or all together more than `MAX_TOTAL`."""

    def settings(self, name: str, reference: str) -> dict[str, Any]:
        """Return the JSON object in one of them; empty if there is none.

        Raises:
            CheckpointError: it is not JSON, or not an object.
        """
        return parse_companion(self.files[name], reference, name) if name in self.files else {}


def is_tokenizer(name: str) -> bool:
    """Return whether a file is one of a tokenizer's."""
    return _TOKENIZERS.fullmatch(name) is not None


def is_chat_template(name: str) -> bool:
    """Return whether a file is one of the templates of chats that a tokenizer has."""
    return _CHAT_TEMPLATES.fullmatch(name) is not None


def is_companion(name: str) -> bool:
    """Return whether transformers loads a file, or one in a folder, by its name when it loads a model."""
    folder, slash, _ = name.partition("/")
    if slash:
        return folder in _FOLDERS
    return is_tokenizer(name) or is_chat_template(name) or _OTHERS.fullmatch(name) is not None


def read_companions(checkpoint: Checkpoint, wanted: Callable[[str], bool] = is_companion) -> Companions:
    """Read the small files of a model that are wanted by name, and what these name: further files, and code.

    Args:
        checkpoint: the model.
        wanted: whether a file of this name is; by default, all that transformers loads by name are.

    Raises:
        CheckpointError: one is a pointer of Git LFS or a link that leads out, or is not JSON where it should be; or
            there are more than `MAX_NAMED`.
    """
    folder = checkpoint.folder
    if folder is None:
        return Companions({}, ())
    there = _Listing(folder)
    found = Companions({}, ())
    todo = [name for inner in ("", *_FOLDERS) for name in there.names(inner) if wanted(name)]
    while todo:
        room = MAX_TOTAL - sum(map(len, found.files.values()))
        new = [name for name in dict.fromkeys(todo) if name not in found.files and name not in found.large]
        if len(found.files) + len(found.large) + len(new) > MAX_NAMED:
            raise CheckpointError(f"{folder.name} has more than {MAX_NAMED} small files that belong to its model")
        more = _read(folder, new, room)
        found = Companions(found.files | more.files, (*found.large, *more.large))
        named = (word for name in more.files for word in _named(more, name, checkpoint))
        todo = [name for name in named if name in there]
    return found


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
    """Return the files beside the weights in which the classes are that `auto_map` names, here or further inside."""
    names = [
        word for inside in json_values(settings) if isinstance(inside, dict) for word in _texts(inside.get("auto_map"))
    ]
    return list(dict.fromkeys(f"{name.partition('.')[0]}.py" for name in names if "--" not in name))


def json_values(value: Any) -> Iterator[Any]:
    """Yield a JSON value and all values in it, at most `MAX_VALUES`."""
    todo = [value]
    for _ in range(MAX_VALUES):
        if not todo:
            return
        yield (last := todo.pop())
        todo += last.values() if isinstance(last, dict) else last if isinstance(last, list) else ()


def parse_companion(content: bytes, reference: str, name: str) -> dict[str, Any]:
    """Parse the JSON object in a companion called `name`.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    parsed = parse_json(content, f"{reference}: its {name}")
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{reference}: its {name} holds a {type(parsed).__name__}, expected an object")
    return parsed


def encode_companion(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the content of a companion; half a surrogate pair, which JSON may hold, is escaped."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


class _Listing:
    """The files of a folder, and of those of its folders that are asked for: others may hold a million recordings."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._listed: dict[str, list[str]] = {inner: [] for inner in folder.folders()}
        self._listed[""] = folder.names()

    def names(self, inner: str) -> list[str]:
        if self._listed.get(inner) == []:
            self._listed[inner] = self._folder.names(inner)
        return self._listed.get(inner, [])

    def __contains__(self, name: str) -> bool:
        return name in self.names(name.rpartition("/")[0])


def _read(folder: Folder, names: Iterable[str], room: int = MAX_SIZE) -> Companions:
    files: dict[str, bytes] = {}
    large = []
    for name in names:
        if folder.leads_out(name):
            raise CheckpointError(
                f"{folder.name}/{name} is a link that leads out of the model's folder", hint="put the file itself there"
            )
        with folder.open(name) as source:
            if source.size > min(MAX_SIZE, room):
                large.append(name)
                continue
            files[name] = source.read(0, source.size)
            room -= source.size
        if files[name].startswith(_POINTER):
            raise CheckpointError(
                f"{folder.name}/{name} is a Git LFS pointer, not the file itself", hint="run git lfs pull"
            )
    return Companions(files, tuple(large))


def _named(found: Companions, name: str, checkpoint: Checkpoint) -> list[str]:
    """Return the files that one of the companions names, whether they are there or not."""
    inner, slash, last = name.rpartition("/")
    if last.endswith(".py"):
        return [inner + slash + imported for imported in _imports(found.files[name])]
    if name not in _NAMING:
        return []
    settings = found.settings(name, checkpoint.reference)
    words = (normpath(word) for word in _texts(settings) if len(word) <= MAX_NAME)
    return [
        *modules_of(settings),
        *(word for word in words if word != checkpoint.file and not _WEIGHTS.fullmatch(word)),
    ]


def _texts(value: Any) -> Iterator[str]:
    return (inside for inside in json_values(value) if isinstance(inside, str))


def _imports(code: bytes) -> list[str]:
    """Return the files that a module imports from its own folder: `from .other import x`, `from . import other`.

    Parsed, never executed.
    """
    try:
        nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) and node.level == 1]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = [node.module or imported.name for node in nodes for imported in node.names]
    return [f"{name.partition('.')[0]}.py" for name in names]
