"""A live model holds what a written merge would hold, bit for bit, whatever the cell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
