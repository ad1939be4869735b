"""LoRA by loralib, as ESPnet and WeNet use it, and by SpeechBrain: their own layers, in a model of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import differences, interpolate
from loaders import toolkit
from models import build, model_class
from options import UNSYNCED

from speechft_merge import Recipe, merge
from speechft_merge.errors import MismatchError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

RANK, ALPHA = 3, 6.0
KINDS = ["loralib", "loralib in evaluation mode", "SpeechBrain"]


def wrapped(kind: str, layer: torch.nn.Module) -> torch.nn.Module:
    """The layer of the toolkit around, or in place of, one of torch."""
    if kind == "SpeechBrain":
        around: torch.nn.Module = toolkit("speechbrain.nnet.adapters").LoRA(layer, RANK, ALPHA)
        return around
    lora: Any = toolkit("loralib")
    if isinstance(layer, torch.nn.Embedding):
        made = lora.Embedding(*layer.weight.shape, r=RANK, lora_alpha=ALPHA)
    else:
        assert isinstance(layer, torch.nn.Linear)
        made = lora.Linear(layer.in_features, layer.out_features, r=RANK, lora_alpha=ALPHA)
    made.load_state_dict(layer.state_dict(), strict=False)
    return made  # type: ignore[no-any-return]


def adapted(kind: str, model: Any) -> None:
    """Put LoRA on every q_proj and v_proj and, where that can be, on the embedding of words; move its numbers."""
    names = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "v_proj", "decoder.embed_tokens"))]
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        if isinstance(layer, torch.nn.Linear) or kind != "SpeechBrain":
            setattr(model.get_submodule(parent), last, wrapped(kind, layer))
    torch.manual_seed(2)
    model.train()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "adapter_" in name:
            parameter.data.normal_(0, 0.1)


def computed_with(kind: str, model: Any) -> dict[str, torch.Tensor]:
    """The weights of the model as its layers compute with them: a linear map is what it makes of the unit vectors."""
    found = {name: tensor.double() for name, tensor in model.state_dict().items() if name.endswith(("weight", "bias"))}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            change = module.lora_B.double() @ module.lora_A.double() * ALPHA / RANK
            merged = 0 if getattr(module, "merged", False) else 1
            found[f"{name}.weight"] += merged * (change.T if isinstance(module, torch.nn.Embedding) else change)
        elif hasattr(module, "pretrained_module"):
            inner = module.pretrained_module
            unit = torch.eye(inner.in_features)
            found[f"{name}.weight"] = (module(unit) - module(torch.zeros_like(unit))).T.double()
            found[f"{name}.bias"] = found.get(f"{name}.pretrained_module.bias", torch.zeros(0))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_merged_as_its_layers_compute(kind: str, tmp_path: Path) -> None:
    model = build("Whisper", "ForConditionalGeneration")
    model.save_pretrained(tmp_path / "base")
    adapted(kind, model)
    if kind.endswith("mode"):
        model.eval()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "last.pth")
    with torch.no_grad():
        exact = computed_with(kind, model)
    merge(
        str(tmp_path / "base"), str(tmp_path / "last.pth"), tmp_path / "out", Recipe(lora_alpha=ALPHA), options=UNSYNCED
    )
    loader = model_class("Whisper", "ForConditionalGeneration")
    before, found = (loader.from_pretrained(tmp_path / name).state_dict() for name in ("base", "out"))
    exact["proj_out.weight"] = exact["model.decoder.embed_tokens.weight"]
    off = differences(found, interpolate(before, exact))
    assert max(off.values(), default=0) < 3
    assert any(not torch.equal(before[name], found[name]) for name in before if "q_proj" in name)


def test_one_matrix_for_several_layers_is_refused(tmp_path: Path) -> None:
    """loralib's MergedLinear, whose product has the rows of some of q, k and v only."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 24), torch.nn.Linear(24, 24))
    torch.save(model.state_dict(), tmp_path / "base.pt")
    lora: Any = toolkit("loralib")
    layer = lora.MergedLinear(8, 24, r=2, enable_lora=[True, False, True])
    layer.load_state_dict(model[0].state_dict(), strict=False)
    model[0] = layer
    torch.save(model.state_dict(), tmp_path / "tuned.pt")
    with pytest.raises(MismatchError, match="does not fit: its matrices have the shapes"):
        merge(str(tmp_path / "base.pt"), str(tmp_path / "tuned.pt"), tmp_path / "out", Recipe(lora_alpha=1.0))
