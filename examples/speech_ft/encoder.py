"""The encoder under test: any audio classifier of transformers, hearing two seconds at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from examples.sources.recordings import RATE

WINDOW = 2 * RATE
FRAME = RATE // 50
"""All of these models give 50 frames a second."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(source: Path | str, classes: list[str] | None = None) -> Any:
    """A model in float32, with a new head if classes are given; `source` is a folder or a Hub id."""
    labels = {} if classes is None else {"id2label": dict(enumerate(classes)), "num_labels": len(classes)}
    model = AutoModelForAudioClassification.from_pretrained(
        source, dtype=torch.float32, ignore_mismatched_sizes=classes is not None, **labels
    )
    return model.to(device())


def save(model: Any, extractor: Any, folder: Path) -> None:
    """Write a model in float16, with the settings of its feature extractor."""
    model.half().save_pretrained(folder)
    extractor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def shorten(model: Any, extractor: Any) -> None:
    """Cut Whisper's positions from thirty seconds to the window; other encoders take any length."""
    if model.config.model_type != "whisper":
        return
    positions = WINDOW // FRAME
    table = model.encoder.embed_positions
    table.weight = torch.nn.Parameter(table.weight[:positions].clone(), requires_grad=False)
    table.num_embeddings = model.config.max_source_positions = model.encoder.max_source_positions = positions
    extractor.chunk_length = WINDOW // RATE
    extractor.n_samples = WINDOW
    extractor.nb_max_frames = WINDOW // extractor.hop_length


class Hearing:
    """Waves in, what the model wants out."""

    def __init__(self, folder: Path) -> None:
        self.extractor = AutoFeatureExtractor.from_pretrained(folder)

    def __call__(self, waves: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs for rows of WINDOW samples between -1 and 1."""
        found = self.extractor(list(waves.numpy()), sampling_rate=RATE, return_tensors="pt")
        return {name: tensor.to(device()) for name, tensor in found.items() if name != "attention_mask"}


@torch.no_grad()
def states(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's last layer, (rows, frames, width), and the head's logits, (rows, classes), both on the CPU."""
    encoder = getattr(model, model.base_model_prefix, None) or model.encoder
    found: list[torch.Tensor] = []
    hook = encoder.register_forward_hook(lambda _module, _inputs, outputs: found.append(outputs.last_hidden_state))
    logits = model(**inputs).logits
    hook.remove()
    return found[0].cpu(), logits.cpu()
