"""What a training loop of one's own saves with torch.save meets what save_pretrained wrote, whatever the names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from families import FAMILIES, build
from float64 import differences, interpolate, moved
from models import transformers
from options import UNSYNCED
from safetensors.torch import load_file

from speechft_merge import Recipe, merge
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from pathlib import Path

_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def ast() -> Any:
    return build(next(family for family in FAMILIES if family.bare == "ASTModel"), "ASTModel")


def mimi() -> Any:
    kind = transformers().MimiModel
    sizes = {"codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "codebook_size": 16, "num_quantizers": 4}
    torch.manual_seed(0)
    return kind(kind.config_class(num_key_value_heads=2, num_filters=4, upsample_groups=32, **_SIZES, **sizes))


def encodec() -> Any:
    kind = transformers().EncodecModel
    torch.manual_seed(0)
    return kind(kind.config_class(num_filters=4, hidden_size=16, codebook_size=16, codebook_dim=16))


@pytest.mark.parametrize("make", [ast, mimi, encodec])
@pytest.mark.parametrize("rules", [(), ("cnn=0",)], ids=["all", "without the front end"])
def test_a_state_dict_of_a_loop_merges_into_a_folder(make: Any, rules: tuple[str, ...], tmp_path: Path) -> None:
    """Codebooks too: their running means, and how often each entry was used, are mixed as the weights are."""
    model = make()
    if rules and make is encodec:
        pytest.skip("the whole of it is convolutions")
    model.save_pretrained(tmp_path / "base")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = {name: tensor.abs() if "cluster" in name else tensor for name, tensor in moved(base).items()}
    tuned |= {name: tensor for name, tensor in base.items() if name.endswith(("inited", "initialized"))}  # flags
    torch.save(tuned, tmp_path / "tuned.pt")
    recipe = Recipe(layer_alpha=tuple(map(parse_rule, rules)))
    result = merge(str(tmp_path / "base"), str(tmp_path / "tuned.pt"), tmp_path / "out", recipe, options=UNSYNCED)
    assert result.findings == ()
    found, told = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in told.items() if value} == {}
    wanted = interpolate(base, tuned)
    if rules:
        front = ("embeddings.patch_embeddings.", "encoder.encoder_seanet.")
        wanted |= {name: tensor.double() for name, tensor in base.items() if name.startswith(front)}
    assert differences(found.state_dict(), wanted) == {}
    assert load_file(tmp_path / "out/model.safetensors").keys() == load_file(tmp_path / "base/model.safetensors").keys()
