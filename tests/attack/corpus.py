"""Some 300 hostile files: what a checkpoint, its index, its config, a pickle, a zip or a recipe may hold to do harm.

Each builder writes into a folder and returns what to pass as the fine-tune, or as a recipe. Most are made from tables:
a good file with one thing put wrong.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

REFUSED = frozenset({65})
UNREADABLE = frozenset({65, 66})
HARMLESS = frozenset({0, 65})
USAGE = frozenset({2, 65, 66})
ASKED = frozenset({65, 73})
"""An output that is a hundred times the inputs is refused until it is asked for."""

MEGA = 1_000_000


@dataclass(frozen=True)
class Hostile:
    """One file."""

    build: Callable[[Path], Path]
    codes: frozenset[int] = REFUSED
    as_recipe: bool = False


CORPUS: dict[str, Hostile] = {}

random = np.random.default_rng(3)
BASE = {f"encoder.layers.{i}.attention.q_proj.weight": random.random((8, 8), np.float32) for i in range(3)}
BASE |= {"encoder.layer_norm.weight": np.ones(8, np.float32)}
TUNED = {name: values + np.float32(0.01) for name, values in BASE.items()}
FIRST = next(iter(TUNED))


def write_base(folder: Path) -> Path:
    """The model that each is merged with."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(BASE))
    return folder


def add(name: str, build: Callable[[Path], Path], codes: Iterable[int] = REFUSED, *, as_recipe: bool = False) -> None:
    assert name not in CORPUS, name
    CORPUS[name] = Hostile(build, frozenset(codes), as_recipe)


def put(name: str, content: bytes) -> Callable[[Path], Path]:
    """Build a model folder with one file."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder

    return build


# safetensors


def headed(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def header_of(weights: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    content = save(weights)
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


HEAD, BODY = header_of(TUNED)
ODD_VALUES = [
    "null",
    "true",
    "-1",
    "1.0",
    "1e9",
    "[]",
    "{}",
    '""',
    '"x"',
    "[null]",
    "[[1]]",
    "[-1]",
    "[1.5]",
    '["1"]',
    "NaN",
    "[NaN]",
    "Infinity",
    "9" * 30,
    "9" * 5000,
    f"[{'9' * 400}]",
    "[4611686018427387904,4611686018427387904]",
    f"[{','.join(['4294967296'] * 64)}]",
    f"[{','.join(['1'] * 70)}]",
    f"[{','.join(['1'] * 200_000)}]",
    '"' + "F" * 100_000 + '"',
    "[" * 3000 + "]" * 3000,
]
FIELDS = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]"}
for field, (number, value) in itertools.product(FIELDS, enumerate(ODD_VALUES)):
    entry = ",".join(f'"{key}":{value if key == field else good}' for key, good in FIELDS.items())
    add(f"safetensors-{field}-{number}", put("model.safetensors", headed(f'{{"x":{{{entry}}}}}'.encode(), bytes(4))))


def with_entry(name: str, **entry: Any) -> bytes:
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return json.dumps(HEAD | {name: good | entry}).encode()


ESCAPES = "\x1b[2J\x1b]8;;http://evil\x07\u202egnp.exe\r\n"
HEADERS: dict[str, tuple[Iterable[int], bytes]] = {
    "empty": (REFUSED, b""),
    "a list": (REFUSED, headed(b"[]")),
    "a text": (REFUSED, headed(b'"x"')),
    "no entries": (REFUSED, headed(b"{}")),
    "spaces": (REFUSED, headed(b"{" + b" " * MEGA)),
    "longer than the file": (REFUSED, headed(b"{}", length=1000)),
    "of 2^63 bytes": (REFUSED, headed(b"{}", length=1 << 63)),
    "of 2^64 - 1 bytes": (REFUSED, headed(b"{}", length=(1 << 64) - 1)),
    "of no bytes": (REFUSED, headed(b"{}", length=0)),
    "with a mark of byte order": (REFUSED, headed(b"\xef\xbb\xbf" + json.dumps(HEAD).encode(), BODY)),
    "in UTF-16": (REFUSED, headed(json.dumps(HEAD).encode("utf-16"), BODY)),
    "no UTF-8": (REFUSED, headed(b'{"\xff":1}')),
    "overlong UTF-8": (REFUSED, headed(b'{"\xc0\x80":1}')),
    "half a surrogate pair": (REFUSED, headed(with_entry("a\ud800"), BODY + bytes(4))),
    "escapes in names": (HARMLESS, headed(json.dumps({ESCAPES + key: HEAD[key] for key in HEAD}).encode(), BODY)),
    "NUL in names": (HARMLESS, headed(json.dumps({key + "\0": HEAD[key] for key in HEAD}).encode(), BODY)),
    "a name of a megabyte": (REFUSED, headed(with_entry("n" * MEGA), BODY + bytes(4))),
    "a name twice": (REFUSED, headed(b'{"a":1,"a":1}')),
    "a key twice": (REFUSED, headed(b'{"x":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', bytes(4))),
    "metadata of numbers": (REFUSED, headed(b'{"__metadata__":{"a":1}}')),
    "metadata of a list": (REFUSED, headed(b'{"__metadata__":[]}')),
    "metadata with escapes": ({0}, headed(json.dumps(HEAD | {"__metadata__": {ESCAPES: ESCAPES}}).encode(), BODY)),
    "metadata of megabytes": ({0}, headed(json.dumps(HEAD | {"__metadata__": {"a": "x" * MEGA}}).encode(), BODY)),
    "deep lists": (REFUSED, headed(b'{"x":' + b"[" * MEGA)),
    "deep objects": (REFUSED, headed(b'{"x":' * 100_000 + b"1" + b"}" * 100_000)),
    "ten million lists": (REFUSED, headed(b'{"x":[' + b"[]," * 10_000_000 + b"[]]}")),
    "four million objects": (REFUSED, headed(b'{"x":[' + b"{}," * 4_000_000 + b"{}]}")),
    "bytes left over": (REFUSED, headed(json.dumps(HEAD).encode(), BODY + bytes(8))),
    "bytes too few": (REFUSED, headed(json.dumps(HEAD).encode(), BODY[:-1])),
    "two tensors in one place": (REFUSED, headed(with_entry("x", shape=[8], data_offsets=[0, 32]), BODY)),
    "a gap": (REFUSED, headed(with_entry("x", data_offsets=[len(BODY) + 8, len(BODY) + 12]), BODY + bytes(12))),
    "nothing of huge size": (HARMLESS, headed(with_entry("x", shape=[0, 1 << 62], data_offsets=[len(BODY)] * 2), BODY)),
    "half a byte": (REFUSED, headed(with_entry("x", dtype="F4", shape=[2], data_offsets=[0, 1]), b"\0")),
}
for name, (codes, content) in HEADERS.items():
    add(f"safetensors-header-{name}", put("model.safetensors", content), codes)

# files cut short

TORCH: dict[str, Any] = {name: torch.from_numpy(values) for name, values in TUNED.items()}


def torch_saved(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


WHOLE = {"model.safetensors": save(TUNED), "zip.bin": torch_saved(TORCH), "legacy.bin": torch_saved(TORCH, legacy=True)}
for name, content in WHOLE.items():
    add(f"whole-{name}", put(name, content), {0})
    size = len(content)  # of a pickle it varies between processes, with its keys, which are addresses
    cuts = {"a-third": size // 3, "half": size // 2, "100-less": size - 100, "1-less": size - 1}
    for part, end in {"1": 1, "7": 7, "9": 9, "64": 64, **cuts}.items():
        add(f"cut-{name}-{part}", put(name, content[:end]))

# indexes


def indexed(index: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "a.safetensors").write_bytes(save(TUNED))
        return put("model.safetensors.index.json", index)(folder)

    return build


SHARDS: list[Any] = [
    "../good/model.safetensors",
    "/etc/passwd",
    "http://127.0.0.1:9/x",
    "..\\a.safetensors",
    "a\0.safetensors",
    "..",
    ".",
    "",
    5,
    None,
    True,
    ["a"],
    {"a": 1},
    "a" * 5000,
    "/" * MEGA,
    ESCAPES,
    "..\u2215a.safetensors",
    "a.safetensors/..",
    "model.safetensors.index.json",
    "missing.safetensors",
]
for number, shard in enumerate(SHARDS):
    content = json.dumps({"weight_map": dict.fromkeys(TUNED, shard)}).encode()
    add(f"index-shard-{number}", indexed(content), UNREADABLE)
INDEXES = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "no map": b"{}",
    "a map of nothing": b'{"weight_map":{}}',
    "a map that is a list": b'{"weight_map":[1]}',
    "deep": b'{"weight_map":' + b"[" * 200_000,
    "half a million names": json.dumps({"weight_map": {f"t{i}": "a.safetensors" for i in range(500_000)}}).encode(),
    "a million files": json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(MEGA)}}).encode(),
    "another name": json.dumps({"weight_map": {"x": "a.safetensors"}}).encode(),
    "no text": b"\xff\xfe{}",
}
for name, content in INDEXES.items():
    add(f"index-{name}", indexed(content), UNREADABLE)

# configs


def configured(config: bytes, file: str = "config.json") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "model.safetensors").write_bytes(save(TUNED))
        return put(file, config)(folder)

    return build


CONFIGS = {
    "deep": b"[" * 300_000,
    "twenty million lists": b'{"a":[' + b"[]," * 20_000_000 + b"[]]}",
    "a list": b"[]",
    "text of 70 MB": b'{"a":"' + b"x" * 70_000_000 + b'"}',
    "NaN": b'{"a":NaN,"architectures":[{}]}',
    "empty": b"",
    "Markdown": json.dumps({"architectures": ["x\n---\n<script>ForCTC"], "model_type": {"a": 1}}).encode(),
    "half a surrogate pair": b'{"a":"\\ud800","torch_dtype":"float16"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "code elsewhere": b'{"auto_map":{"AutoModel":"../../x.Y"},"trust_remote_code":true}',
    "a number": b"5",
    "names out of the folder": b'{"a":"../base/model.safetensors","b":"/etc/passwd"}',
    "no UTF-8": b'{"\xff":1}',
    "a pointer of LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "a number of digits": b'{"a":' + b"9" * 9000 + b"}",
}
for name, content in CONFIGS.items():
    add(f"config-{name}", configured(content), {0, 65})
for file in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"):
    add(f"config-{file}-deep", configured(b"[" * 300_000, file), {0, 65})

# places


def linked(target: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "model.safetensors").symlink_to(target)
        return folder

    return build


def made(make: Callable[[Path], object], file: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        if file != "model.safetensors":
            (folder / "model.safetensors").write_bytes(save(TUNED))
        make(folder / file)
        return folder

    return build


for target in ("/etc/passwd", "/dev/zero", "/proc/self/mem", "model.safetensors", "/nowhere"):
    add(f"link-to-{target}", linked(target), UNREADABLE)
for file in ("model.safetensors", "config.json", "preprocessor_config.json", "tokenizer_config.json"):
    add(f"pipe-{file}", made(os.mkfifo, file), {0, 65, 66})
    add(f"folder-{file}", made(Path.mkdir, file), {0, 65, 66})
    if file != "model.safetensors":
        add(f"link-{file}", made(lambda path: path.symlink_to("/etc/passwd"), file), {0, 65, 66})
for device in ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ"):
    add(f"device-{device}", lambda _, device=device: Path(device), UNREADABLE)


def sparse(folder: Path) -> Path:
    size = 100_000_000_000
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    content = headed(json.dumps({FIRST: entry}).encode())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(content)
        file.truncate(len(content) + size)
    return folder


add("sparse-of-100-GB", sparse, {65, 73, 74})

# recipes

LEVELS = ["&a0 [x,x,x,x,x,x,x,x,x,x]", *(f"&a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))]
LAUGHS = f"[{', '.join(LEVELS)}]"
RECIPES = {
    **{
        f"laughs in {key}": f"{key}: {LAUGHS}"
        for key in ("alpha", "layer_alpha", "weight", "dtype", "format", "keep_head")
    },
    "a tag": "alpha: !!python/object/apply:os.system ['touch pwned']",
    "deep": "alpha: " + "[" * 50_000,
    "deep objects": "{a: " * 20_000,
    "a number of digits": "alpha: " + "9" * 100_000,
    "a list": "[1,2]",
    "a date": "alpha: 2001-99-99",
    "a set": "? [1,2]\n: 3",
    "a merge key": "<<: 5\nalpha: 0.2",
    "itself": "layer_alpha: &a [*a]",
    "itself as a map": "layer_alpha: &a {x: *a}",
    "a key of megabytes": "? " + "k" * 5_000_000 + "\n: 1",
    "tabs": "alpha:\t\t[",
    "a hundred thousand rules": "layer_alpha: [" + ",".join(["'0-2=0.1'"] * 100_000) + "]",
    "NaN": "alpha: .nan",
    "stars": "layer_alpha: ['" + "**." * 60 + "x=0.1']",
    "stars and letters": "layer_alpha: ['" + "*a" * 60 + "b=0.1']",
    "stars without end": "layer_alpha: ['" + "**." * 80_000 + "x=0.1']",
    "escapes": 'alpha: "\\e[2J"',
    "half a letter": "alpha: '\\xff",
    "a manifest of wrong types": '{"recipe":{"alpha":true,"keep_head":"yes"}}',
    "a manifest that is a list": '{"recipe":[1]}',
    "a manifest of a million": '{"recipe":{"layer_alpha":[' + "[]," * MEGA + "[]]}}",
    "infinity": "alpha: .inf",
}


def recipe(text: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "recipe.yaml").write_text(text)
        return folder / "recipe.yaml"

    return build


for name, text in RECIPES.items():
    add(f"recipe-{name}", recipe(text), USAGE, as_recipe=True)
for device in ("/dev/zero", "/proc/self/mem", "/", "/nowhere"):
    add(f"recipe-{device}", lambda _, device=device: Path(device), USAGE, as_recipe=True)
