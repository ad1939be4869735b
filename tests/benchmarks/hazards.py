"""What may go wrong in a merge, and small models with which it does."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pairs import Weights, finetune, spread
from safetensors.torch import save_file
from transformers import HubertConfig, HubertForCTC, HubertModel
from transformers.utils.logging import disable_progress_bar

KEY = "encoder.layers.0.attention.k_proj.weight"
"""The tensor that something is wrong with."""
MARKER = "executed"
"""A folder beside the models, once the code in a pickle was run."""


@dataclass(frozen=True)
class Hazard:
    title: str
    finetuned: str  # name of a model of `write_models`
    base: str = "base"
    meant: str = ""  # the model that has the weights of a fine-tune that runs code where it is loaded
    way: str = "once"  # how the tool is run: once, killed, full, twice
    pattern: str = ""


HAZARDS = (
    Hazard("nothing: a good pair", "good"),
    Hazard("nothing: a fine-tune with a CTC head", "ctc"),
    Hazard("killed with half of the output written", "good", way="killed"),
    Hazard("disk full at half of the output", "good", way="full"),
    Hazard("two runs at once to one output", "good", way="twice"),
    Hazard("NaN in the fine-tune", "nan"),
    Hazard("a tensor of shape (1, n) for (n, n)", "broadcast"),
    Hazard("a tensor of shape (n + 1, n) for (n, n)", "shape"),
    Hazard("a pickle that runs code", "evil", meant="good"),
    Hazard("an unrelated model of the same shapes", "unrelated"),
    Hazard("LoRA in the fine-tune's file", "lora"),
    Hazard("base and fine-tune swapped (CTC head)", "base", base="ctc"),
    Hazard("a layer pattern that matches nothing", "good", pattern="decoder.nothing.**"),
)


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def configuration() -> HubertConfig:
    """A HuBERT of 24 M parameters, 96 MB: large enough to be met while it is written."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
    return HubertConfig(**sizes, architectures=["HubertModel"])


def initialised(seed: int) -> Weights:
    torch.manual_seed(seed)
    model = HubertModel(configuration())
    return {key: spread(tensor).contiguous() for key, tensor in model.state_dict().items()}


def changed(weights: Weights, key: str, tensor: torch.Tensor) -> Weights:
    return weights | {key: tensor.contiguous()}


def fine_tunes(base: Weights) -> Iterator[tuple[str, Weights]]:
    """Models of the base's class, by name."""
    good = {key: finetune(key, tensor) for key, tensor in base.items()}
    tensor, n = good[KEY], len(good[KEY])
    spoilt = tensor.clone()
    spoilt[1, 2] = torch.nan
    yield "good", good
    yield "nan", changed(good, KEY, spoilt)
    yield "broadcast", changed(good, KEY, tensor[:1])
    yield "shape", changed(good, KEY, torch.cat([tensor, tensor[:1]]))
    yield "unrelated", initialised(1)
    adapter = KEY.removesuffix("weight")
    low = {f"{adapter}lora_A.default.weight": torch.randn(8, n), f"{adapter}lora_B.default.weight": torch.randn(n, 8)}
    yield "lora", good | low


@torch.no_grad()
def write_models(folder: Path) -> None:
    """Write every model that a hazard names, each into a folder of its name."""
    base, config = initialised(0), configuration()
    models = {"base": base, **dict(fine_tunes(base))}
    for name, weights in models.items():
        config.save_pretrained(folder / name)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder / "evil")
    torch.save(models["good"] | {"evil": Evil(folder / MARKER)}, folder / "evil" / "pytorch_model.bin")
    disable_progress_bar()
    model = HubertForCTC(config)
    model.hubert.load_state_dict(models["good"])
    model.save_pretrained(folder / "ctc")
