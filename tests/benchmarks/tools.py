"""The tools that are held against each other: how each is told to merge two models.

Stays on the standard library, see runs.py.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALPHA = 0.25


@dataclass(frozen=True)
class Job:
    """Two models to merge, each a folder, into an empty folder."""

    base: Path
    finetuned: Path
    output: Path
    dtype: str
    scratch: Path  # where a tool's configuration may be written
    pattern: str = ""  # of tensors that get another alpha

    @property
    def models(self) -> list[Path]:
        return [self.base, self.finetuned]


Command = Callable[[Job], list[str]]


@dataclass(frozen=True)
class Tool:
    name: str
    command: Command
    patterns: bool = False  # whether it can be told to mix some tensors otherwise


def weights(folder: Path) -> list[Path]:
    """The files of weights below a folder, one or several shards, without those in hidden folders."""
    found = (path for pattern in ("*.safetensors", "*.bin") for path in folder.rglob(pattern))
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def readable(folder: Path) -> Path:
    """What a tool that knows no folders is given: the file of weights, if it is one."""
    files = weights(folder)
    return files[0] if len(files) == 1 else folder


def ours(*options: str) -> Command:
    def command(job: Job) -> list[str]:
        words = [sys.executable, "-m", "speechft_merge", *map(str, job.models), "-o", str(job.output / "merged")]
        rule = ["--layer-alpha", f"{job.pattern}=0.5"] if job.pattern else []
        return [*words, "--alpha", str(ALPHA), "--no-fsync", "-q", *rule, *options]

    return command


def script(job: Job) -> list[str]:
    models = [str(readable(model)) for model in job.models]
    return [sys.executable, str(HERE / "plain_merge.py"), *models, str(job.output / "merged.safetensors"), str(ALPHA)]


def mergekit(python: Path) -> Command:
    def command(job: Job) -> list[str]:
        config = job.scratch / "mergekit.yaml"
        config.write_text(json.dumps(mergekit_config(job)))  # JSON is YAML
        return [str(python.with_name("mergekit-pytorch")), str(config), str(job.output)]

    return command


def mergekit_config(job: Job) -> dict[str, object]:
    """A linear merge, as mergekit has it."""
    models = []
    for model, weight, other in zip(job.models, (1 - ALPHA, ALPHA), (0.5, 0.5), strict=True):
        rules = [{"filter": job.pattern, "value": other}, {"value": weight}] if job.pattern else weight
        models.append({"model": str(readable(model)), "parameters": {"weight": rules}})
    return {"merge_method": "linear", "models": models, "dtype": job.dtype}


def sd_mecha(python: Path) -> Command:
    def command(job: Job) -> list[str]:
        models = [str(readable(model)) for model in job.models]
        output = [str(job.output / "merged.safetensors"), str(ALPHA), job.dtype]
        return [str(python), str(HERE / "sd_mecha_merge.py"), *models, *output]

    return command


def peers(mergekit_python: Path | None, sd_mecha_python: Path | None) -> Iterator[Tool]:
    """The plain script, and the peers whose Python was given."""
    yield Tool("plain torch script", script)
    if mergekit_python:
        yield Tool("mergekit-pytorch", mergekit(mergekit_python), patterns=True)
    if sd_mecha_python:
        yield Tool("sd-mecha", sd_mecha(sd_mecha_python))
