"""Tiny pairs of checkpoints, and the command run as a shell would run it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from processes import COMMAND, Ran, plain_environment
from safetensors.numpy import load_file, save_file

from speechft_merge.__main__ import main
from speechft_merge.cli.entry import SIGNALS

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # stderr has what tests ask of; progress has its own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch, here and in subprocesses: the tests run side by side

Weights = dict[str, NDArray[Any]]
Run = Callable[..., "Ran"]
Start = Callable[..., "subprocess.Popen[str]"]
Snapshot = Callable[[Path], dict[str, str]]
SavedPair = tuple[str, str]
SavePair = Callable[..., SavedPair]

# the same examples in every run; on a busy machine time says nothing; and no example minds that of the one before a
# file is left in the test's folder
settings.register_profile(
    "busy",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("busy")

SINGLE = "model.safetensors"
CONFIG = {"model_type": "hubert", "architectures": ["HubertModel"], "hidden_size": 32, "dtype": "float32"}
FAMILY = {"model_type": "hubert"}
CTC_CONFIG = CONFIG | {"architectures": ["HubertForCTC"], "vocab_size": 12}
EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000}


@dataclass(frozen=True)
class Pair:
    """A bare encoder and a CTC fine-tune of it."""

    base: Path
    finetuned: Path

    @property
    def args(self) -> list[str]:
        return [str(self.base), str(self.finetuned)]


class Tiny:
    """Writes models with the names of a HuBERT of two layers of width 32, and reads them back."""

    def weights(self, seed: int = 0, hidden: int = 32, layers: int = 2) -> Weights:
        random = np.random.default_rng(seed)
        return {name: self._values(random, name, shape) for name, shape in _hubert_shapes(hidden, layers)}

    def finetuned(self, base: Weights, seed: int = 1, noise: float = 0.02) -> Weights:
        """`base` with noise of a fiftieth of its spread; the convolutions stay as they are, as in most fine-tuning."""
        random = np.random.default_rng(seed)
        return {
            name: values if name.startswith("feature_extractor.") else _shaken(values, noise, random)
            for name, values in base.items()
        }

    def ctc(self, encoder: Weights, vocabulary: int = 12) -> Weights:
        """The encoder under the prefix of its task class, with a head."""
        hidden = encoder["masked_spec_embed"].size
        random = np.random.default_rng(9)
        head = {
            "lm_head.weight": self._values(random, "lm_head.weight", (vocabulary, hidden)),
            "lm_head.bias": self._values(random, "lm_head.bias", (vocabulary,)),
        }
        return {f"hubert.{name}": values for name, values in encoder.items()} | head

    def write(self, folder: Path, weights: Weights, config: object = FAMILY, **files: object) -> Path:
        """A model directory; `files` are the JSON files beside the weights, named without their suffix."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / SINGLE, metadata={"format": "pt"})
        for name, content in {"config": config, **files}.items():
            if content is not None:
                (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    def write_pair(self, folder: Path, base: Weights, finetuned: Weights) -> Pair:
        width = {"hidden_size": base["masked_spec_embed"].size}
        return Pair(
            self.write(folder / "base", base, CONFIG | width, preprocessor_config=EXTRACTOR),
            self.write(folder / "finetuned", finetuned, CTC_CONFIG | width),
        )

    def read(self, folder: Path) -> Weights:
        """All tensors of a model directory, whatever number of files they lie in."""
        weights: Weights = {}
        for path in sorted(folder.glob("*.safetensors")):
            weights |= load_file(path)
        return weights

    def _values(self, random: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        centre = 1 if name.endswith(("norm.weight", "original0")) else 0
        return (centre + 0.1 * random.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def _heed_interrupts() -> None:
    """A shell without job control starts `pytest &` with SIGINT ignored, and every process started here would be so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def pair(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The usual pair; no test may change it, and no merge may."""
    folder = tmp_path_factory.mktemp("pair")
    base = tiny.weights()
    written = tiny.write_pair(folder, base, tiny.ctc(tiny.finetuned(base)))
    before = snapshot_of(folder)
    yield written
    assert snapshot_of(folder) == before


@pytest.fixture
def copied(pair: Pair, tmp_path: Path) -> list[str]:
    """The usual pair where a test may change it."""
    for folder in (pair.base, pair.finetuned):
        shutil.copytree(folder, tmp_path / folder.name)
    return ["base", "finetuned"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command in `tmp_path`, inside of this process: a tenth of the time that a process of its own takes."""

    def run(*args: object, cwd: Path = tmp_path) -> Ran:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        handlers = [(number, signal.getsignal(number)) for number in SIGNALS]
        arguments = mock.patch.object(sys, "argv", ["speechft-merge", *map(str, args)])
        with arguments, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd):
            code = _exit_code_of(main)
        for number, handler in handlers:
            signal.signal(number, handler)
        for stream in (out, err):
            stream.flush()
        return Ran(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))

    return run


def _exit_code_of(program: Callable[[], None]) -> int:
    """What the interpreter would exit with."""
    try:
        program()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture
def spawn(tmp_path: Path) -> Run:
    """Run the command in `tmp_path` as a process of its own; `wrapper` is a command to run it in."""

    def spawn(
        *args: object, cwd: Path = tmp_path, env: Mapping[str, str] = {}, wrapper: Sequence[str] = (), **kwargs: Any
    ) -> Ran:
        done = subprocess.run(
            [*wrapper, *COMMAND, *map(str, args)], cwd=cwd, env=plain_environment() | dict(env), capture_output=True,
            encoding="utf-8", timeout=300, check=False, **kwargs,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    return spawn


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command in `tmp_path` and leave it running; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: object, command: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        started.append(
            subprocess.Popen([*command, *map(str, args)], cwd=tmp_path, env=plain_environment(), **pipes)  # type: ignore[call-overload]
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    """Every path below a folder, with a checksum of its content: equal snapshots, nothing happened."""
    return snapshot_of


@pytest.fixture(scope="session")
def save_pair(tmp_path_factory: pytest.TempPathFactory) -> SavePair:
    """A base and a fine-tune with random weights, saved by transformers; each made once."""
    from models import build, fine_tune

    made: dict[str, SavedPair] = {}

    def save(family: str, kind: str = "Model", base_kind: str = "Model", **config: Any) -> SavedPair:
        key = repr((family, kind, base_kind, sorted(config.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("models")
            base = build(family, base_kind, **config)
            base.save_pretrained(folder / "base")
            fine_tune(base, family, kind, **config).save_pretrained(folder / "finetuned")
            made[key] = str(folder / "base"), str(folder / "finetuned")
        return made[key]

    return save


@pytest.fixture(scope="session")
def few_clips() -> tuple[Path, ...]:
    """Of the built-in probe: enough for a figure, and quick."""
    from speechft_merge.similarity.probe import BUILT_IN

    return tuple(sorted(BUILT_IN.glob("*.flac"))[:5])


def snapshot_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _identity(path) for path in sorted(folder.rglob("*"))}


def _identity(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "not a file"


def _shaken(values: NDArray[Any], noise: float, random: np.random.Generator) -> NDArray[Any]:
    moved = values + noise * 0.1 * random.standard_normal(values.shape)
    return np.asarray(moved.astype(values.dtype))


def _hubert_shapes(hidden: int, layers: int) -> list[tuple[str, tuple[int, ...]]]:
    conv, inner = hidden // 2, 2 * hidden
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("masked_spec_embed", (hidden,)),
        ("feature_extractor.conv_layers.0.conv.weight", (conv, 1, 10)),
        ("feature_extractor.conv_layers.0.layer_norm.weight", (conv,)),
        ("feature_extractor.conv_layers.0.layer_norm.bias", (conv,)),
        *((f"feature_extractor.conv_layers.{i}.conv.weight", (conv, conv, 3)) for i in range(1, 4)),
        ("feature_projection.layer_norm.weight", (conv,)),
        ("feature_projection.layer_norm.bias", (conv,)),
        ("feature_projection.projection.weight", (hidden, conv)),
        ("feature_projection.projection.bias", (hidden,)),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", (1, 1, 16)),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", (hidden, conv, 16)),
        ("encoder.pos_conv_embed.conv.bias", (hidden,)),
        ("encoder.layer_norm.weight", (hidden,)),
        ("encoder.layer_norm.bias", (hidden,)),
    ]
    for layer in range(layers):
        stem = f"encoder.layers.{layer}."
        for projection in ("k_proj", "q_proj", "v_proj", "out_proj"):
            shapes.append((f"{stem}attention.{projection}.weight", (hidden, hidden)))
            shapes.append((f"{stem}attention.{projection}.bias", (hidden,)))
        shapes += [
            (f"{stem}layer_norm.weight", (hidden,)),
            (f"{stem}layer_norm.bias", (hidden,)),
            (f"{stem}feed_forward.intermediate_dense.weight", (inner, hidden)),
            (f"{stem}feed_forward.intermediate_dense.bias", (inner,)),
            (f"{stem}feed_forward.output_dense.weight", (hidden, inner)),
            (f"{stem}feed_forward.output_dense.bias", (hidden,)),
            (f"{stem}final_layer_norm.weight", (hidden,)),
            (f"{stem}final_layer_norm.bias", (hidden,)),
        ]
    return shapes
