"""A live model holds what a written merge would hold, bit for bit, whatever the cell."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lab_files import s3prl_base, s3prl_finetune
from lab_pairs import HUBERT, pair, save
from models import build, fine_tune, model_class
from safetensors.torch import load_file, save_file
from transformers import AutoModelForAudioClassification, HubertModel

from speechft_merge.live import LiveModel, live_encoder, live_model
from speechft_merge.merging import Merge, open_merge
from speechft_merge.plan.plan import make_plan
from speechft_merge.recipe.recipe import Recipe
from speechft_merge.similarity.models import ComparedModels

PAIR = Path(__file__).parent.parent / "examples/pair"
BASE, FINETUNED = str(PAIR / "base"), str(PAIR / "finetuned")
RECIPES = {
    "alpha 0.3": {"alpha": 0.3},
    "the base": {"alpha": 0.0},
    "the fine-tune": {"alpha": 1.0},
    "another alpha by layer": {"alpha": 0.7, "layer_alpha": ("layers=0.1:0.9", "cnn=0.5")},
}


def of(opened: Merge) -> ComparedModels:
    return ComparedModels(opened.base, opened.finetuned, make_plan(opened.base, opened.finetuned, opened.plan.recipe))


def plan_of(opened: Merge, **changes: object) -> object:
    return make_plan(opened.base, opened.finetuned, Recipe.from_json({**opened.plan.recipe.to_json(), **changes}))


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].float()) for name in ours)


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_a_live_encoder_has_the_bits_of_the_written_merge(changes: dict, tmp_path: Path) -> None:
    with open_merge(BASE, FINETUNED, Recipe(alpha=1.0)) as opened:
        live = live_encoder(of(opened), torch.device("cpu"))
        live.set(plan_of(opened, alpha=0.6))  # what it was set to before leaves no trace
        live.set(plan_of(opened, **changes))
        opened.at(Recipe.from_json(changes)).write(tmp_path / "merged")
    assert same(live.module, HubertModel.from_pretrained(tmp_path / "merged"))


def test_a_live_model_keeps_the_head_of_the_fine_tune(tmp_path: Path) -> None:
    with open_merge(BASE, FINETUNED, Recipe(alpha=1.0, keep_head=True)) as opened:
        live = live_model(of(opened), opened.companions, torch.device("cpu"))
        live.set(plan_of(opened, alpha=0.3))
        opened.at(Recipe(alpha=0.3, keep_head=True)).write(tmp_path / "merged")
    written = AutoModelForAudioClassification.from_pretrained(tmp_path / "merged")
    assert same(live.module, written)
    assert isinstance(live, LiveModel)
    assert live.encoder.model is live.module.hubert


WHOLE = [
    ("Hubert", "Model", "ForCTC", True),
    ("WavLM", "ForCTC", "ForCTC", False),
    ("WavLM", "ForCTC", "ForCTC", True),
    ("Wav2Vec2", "ForPreTraining", "ForXVector", True),
    ("Wav2Vec2Bert", "Model", "ForSequenceClassification", True),
    ("Whisper", "ForConditionalGeneration", "ForConditionalGeneration", False),
    ("Whisper", "ForConditionalGeneration", "ForConditionalGeneration", True),
    ("Whisper", "ForConditionalGeneration", "ForAudioClassification", True),
]


@pytest.mark.parametrize(("family", "of_base", "of_finetuned", "keep_head"), WHOLE)
def test_a_live_model_of_any_family_has_the_bits_of_the_written_merge(
    family: str, of_base: str, of_finetuned: str, keep_head: bool, tmp_path: Path
) -> None:
    base = build(family, of_base)
    finetuned = fine_tune(base, family, of_finetuned)
    for model, side in ((base, "base"), (finetuned, "finetuned")):
        model.save_pretrained(tmp_path / side)
    recipe = Recipe(alpha=1.0, keep_head=keep_head)
    with open_merge(str(tmp_path / "base"), str(tmp_path / "finetuned"), recipe) as opened:
        live = live_model(of(opened), opened.companions, torch.device("cpu"))
        live.set(plan_of(opened, alpha=0.9))
        live.set(plan_of(opened, alpha=0.3))
        opened.at(Recipe(alpha=0.3, keep_head=keep_head)).write(tmp_path / "merged")
    written = model_class(family, of_finetuned if keep_head else of_base).from_pretrained(tmp_path / "merged")
    assert type(live.module) is type(written)
    assert same(live.module, written)
    inner = live.encoder.model.state_dict()
    assert {tensor.data_ptr() for tensor in inner.values()} <= {t.data_ptr() for t in live.module.state_dict().values()}


def test_a_live_encoder_out_of_s3prls_files_has_the_bits_of_the_written_merge(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "finetuned.ckpt")
    with open_merge(ours, theirs, Recipe(alpha=1.0)) as opened:
        live = live_encoder(of(opened), torch.device("cpu"))
        live.set(plan_of(opened, alpha=0.3))
        opened.at(Recipe(alpha=0.3, format="safetensors")).write(tmp_path / "merged")
    assert same(live.module, HubertModel.from_pretrained(tmp_path / "merged"))


def test_a_file_of_folded_kernels_fills_the_two_parts_of_the_class(tmp_path: Path) -> None:
    for side in ("base", "finetuned"):
        copied = shutil.copytree(PAIR / side, tmp_path / side)
        weights = load_file(copied / "model.safetensors")
        prefix = next(name for name in weights if name.endswith("conv.parametrizations.weight.original0"))
        stem = prefix.removesuffix(".parametrizations.weight.original0")
        g, v = (weights.pop(f"{stem}.parametrizations.weight.original{part}").float() for part in (0, 1))
        weights[f"{stem}.weight"] = (g * v / v.norm(dim=(0, 1), keepdim=True)).half()
        save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with open_merge(str(tmp_path / "base"), str(tmp_path / "finetuned"), Recipe(alpha=1.0)) as opened:
        live = live_encoder(of(opened), torch.device("cpu"))
        live.set(plan_of(opened, alpha=0.3))
        opened.at(Recipe(alpha=0.3)).write(tmp_path / "merged")
    kernel = next(t for n, t in load_file(tmp_path / "merged/model.safetensors").items() if n.endswith("conv.weight"))
    made = live.module.encoder.pos_conv_embed.conv.weight
    assert torch.allclose(made, kernel.float(), atol=1e-6)


def test_a_file_may_lack_what_only_training_uses(tmp_path: Path) -> None:
    base = build("Hubert")
    finetuned = fine_tune(base, "Hubert", "ForCTC")
    for model, side in ((base, "base"), (finetuned, "finetuned")):
        model.save_pretrained(tmp_path / side)
    path = tmp_path / "finetuned/model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("masked_spec_embed")}
    save_file(weights, path, metadata={"format": "pt"})
    with open_merge(str(tmp_path / "base"), str(tmp_path / "finetuned"), Recipe(alpha=1.0, keep_head=True)) as opened:
        live = live_model(of(opened), opened.companions, torch.device("cpu"))
        live.set(plan_of(opened, alpha=0.3))
    assert type(live.module).__name__ == "HubertForCTC"
