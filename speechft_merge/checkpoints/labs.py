"""Detects which lab's code wrote a pickled checkpoint, from its top-level keys, and reads its configuration.

Sources: S3PRL's downstream/runner.py and upstream/*/convert.py, fairseq's checkpoint_utils.py, WavLM's WavLM.py,
Lightning's checkpoint_connector.py, openai-whisper's __init__.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechft_merge.checkpoints.pickle_data import Inert, Symbol
from speechft_merge.errors import CheckpointError

S3PRL = "S3PRL base"
S3PRL_FINETUNE = "S3PRL fine-tune"
FAIRSEQ = "fairseq"
WAVLM = "WavLM"
LIGHTNING = "Lightning"
OPENAI = "openai-whisper"

MAX_VALUES = 20_000
"""Most values of a configuration that are read; fairseq's has some 400."""
MAX_DEPTH = 8

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Origin:
    """The lab that wrote a file, where its state dict is, and its configuration."""

    lab: str
    path: tuple[str, ...]
    """Where in the pickle the state dict is."""
    model: Settings
    """The model's configuration as plain values; empty where the file has none."""
    task: Settings
    """The task's configuration: sample rate, and whether waveforms are normalised."""


def recognise(root: Any, name: str) -> Origin | None:
    """Return the lab that wrote a file, and its configuration; None for any other.

    Raises:
        CheckpointError: an S3PRL fine-tune whose encoder was frozen, and so not saved.
    """
    if not isinstance(root, dict):
        return None
    if "Downstream" in root and root.keys() & {"Featurizer", "Args", "Config", "Optimizer"}:
        if not isinstance(root.get("Upstream"), dict) or not root["Upstream"]:
            raise CheckpointError(
                f"{name} is an S3PRL checkpoint without 'Upstream': its encoder was frozen, so it is still the "
                "pre-trained one and there is nothing to merge",
                hint="fine-tune with --upstream_trainable",
            )
        return Origin(S3PRL_FINETUNE, ("Upstream",), _named(plain(root.get("Args")).get("upstream")), {})
    if "model_weight" in root and "model_cfg" in root:
        return Origin(S3PRL, ("model_weight",), plain(root["model_cfg"]), plain(root.get("task_cfg")))
    if "model_state_dict" in root and "n_audio_head" in (dims := plain(root.get("dims"))):
        return Origin(OPENAI, ("model_state_dict",), dims, {})
    if "state_dict" in root and "pytorch-lightning_version" in root:
        return Origin(LIGHTNING, ("state_dict",), {}, {})
    if "model" in root and ("cfg" in root or "args" in root):
        flat = isinstance(root.get("cfg"), dict) and "encoder_layers" in root["cfg"]
        model, task = _of_fairseq(plain(root.get("cfg") or root.get("args")))
        if model.keys() & {"encoder_layers", "_name", "arch", "w2v_path"}:
            return Origin(WAVLM if flat else FAIRSEQ, ("model",), model, task)
    return None


def _named(upstream: object) -> Settings:
    return {"_name": upstream} if isinstance(upstream, str) else {}


def _of_fairseq(cfg: Settings) -> tuple[Settings, Settings]:
    """Return the encoder's and the task's part; a fine-tune's configuration contains the pre-trained model's.

    Before 2021 all of it was one argparse.Namespace, with the model's name under `arch`.
    """
    model = cfg.get("model")
    model, task = (model, cfg.get("task")) if isinstance(model, dict) else (cfg, cfg)
    inner = model.get("w2v_args")
    if isinstance(inner, dict):
        encoder, inner_task = _of_fairseq(inner)
        return encoder, inner_task
    name = model.get("_name") or model.get("arch")
    return model | _named(name), task if isinstance(task, dict) else {}


def plain(value: Any) -> Settings:
    """Return a configuration (dictionary, argparse's Namespace or omegaconf's DictConfig) as plain values.

    Anything but numbers, strings, lists and tables is left out. Nothing is executed, and it may refer to itself.
    """
    found = _Plain().of(value, 0)
    return found if isinstance(found, dict) else {}


class _Plain:
    def __init__(self) -> None:
        self._left = MAX_VALUES

    def of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            return None
        match value:
            case "???" | Symbol():  # omegaconf's mark of a missing value; a class
                return None
            case None | bool() | int() | float() | str():
                return value
            case dict():
                return {key: self.of(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
            case list() | tuple():
                return [self.of(item, depth + 1) for item in value]
            case Inert(state=dict(state)):
                return self._of_object(state, depth)
            case Inert(symbol=Symbol(), arguments=(str() | int() | float() as member,)):  # an enum's member
                return member
        return None

    def _of_object(self, state: Settings, depth: int) -> Any:
        """Return the values in an object's state: all of a namespace's, one entry of an omegaconf node's."""
        for content in ("_content", "_val"):
            if content in state:
                return self.of(state[content], depth)
        return self.of(state, depth)
