"""fairseq2's own wav2vec 2.0, loaded by its own hub."""

from __future__ import annotations

import dataclasses
import functools
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import Tensors, differences, interpolate, mixed, moved, rounded
from loaders import merged, toolkit, waves

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "model_dim": 32,
    "feature_dim": 16,
    "feature_extractor_layer_descs": [(16, 10, 5), (16, 3, 2), (16, 2, 2)],
    "pos_conv_kernel_size": 16,
    "num_pos_conv_groups": 2,
    "num_encoder_layers": 2,
    "num_encoder_attn_heads": 2,
    "ffn_inner_dim": 64,
}
LARGE = {"feature_extractor_bias": True, "feature_extractor_layer_norm_convs": True, "layer_norm_features": False}
HEADS = ("quantizer.", "final_proj.", "final_target_proj.")


@functools.cache
def fairseq2() -> Any:
    """Its wav2vec 2.0, without the compiled part, which reads data, and is built for one version of torch only."""
    sys.modules["fairseq2n"] = module = module_from_spec(ModuleSpec("fairseq2n", None, is_package=True))
    module.DOC_MODE = True  # type: ignore[attr-defined]
    toolkit("fairseq2").init_fairseq2()
    return toolkit("fairseq2.models.wav2vec2")


def asr() -> Any:
    fairseq2()
    return toolkit("fairseq2.models.wav2vec2.asr")


class Models:
    """A pre-trained model, the same after more pre-training, and a recogniser made of it, as files."""

    def __init__(self, large: bool, folder: Path) -> None:
        encoder = fairseq2().Wav2Vec2EncoderConfig(**SIZES)
        if large:
            order = toolkit("fairseq2.models.transformer").TransformerNormOrder
            encoder = dataclasses.replace(encoder, norm_order=order.PRE, **LARGE)
        sizes = {"final_dim": 8, "quantized_dim": 8, "num_codebook_entries": 8}
        self.configs = {
            "base": fairseq2().Wav2Vec2Config(encoder_config=encoder, **sizes),
            "asr": asr().Wav2Vec2AsrConfig(encoder_config=encoder, target_vocab_size=12),
        }
        self.configs["more"] = self.configs["base"]
        torch.manual_seed(0)
        made = {
            "base": fairseq2().create_wav2vec2_model(self.configs["base"]),
            "asr": asr().create_wav2vec2_asr_model(self.configs["asr"]),
        }
        self.weights = {"base": clones(made["base"].state_dict())}
        self.weights["more"] = moved(self.weights["base"])
        made["asr"].load_state_dict(body(self.weights["more"]), strict=False)
        self.weights["asr"] = clones(made["asr"].state_dict())
        self.files = {name: folder / f"{name}.pt" for name in self.weights}
        for name, weights in self.weights.items():
            torch.save(weights, self.files[name])

    def load(self, name: str, file: Path) -> Any:
        """What fairseq2's hub makes of one model's configuration and a file."""
        hub = asr().get_wav2vec2_asr_model_hub if name == "asr" else fairseq2().get_wav2vec2_model_hub
        return hub().load_custom_model(file, self.configs[name]).eval()


def clones(weights: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in weights.items()}


def body(weights: Tensors) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(HEADS)}


def encoded(model: Any) -> torch.Tensor:
    layout = toolkit("fairseq2.nn").BatchLayout.of(waves())
    with torch.no_grad():
        seqs, layout = model.encoder_frontend(waves(), layout)
        found: torch.Tensor = model.encoder(seqs, layout)
    return found


@pytest.fixture(params=[False, True], ids=["base", "large"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    return Models(request.param, tmp_path)


@pytest.mark.parametrize(("theirs", "keep_head"), [("more", False), ("asr", False), ("asr", True)])
def test_a_hub_loads_a_merged_file(theirs: str, keep_head: bool, models: Models, tmp_path: Path) -> None:
    owner = theirs if keep_head else "base"
    file = merged(models.files["base"], models.files[theirs], tmp_path / "out", keep_head=keep_head)
    found, by_hand = models.load(owner, file), models.load(owner, models.files[owner])
    base, tuned = body(models.weights["base"]), body(models.weights[theirs])
    heads = {name: tensor for name, tensor in models.weights[owner].items() if name.startswith("final_proj.")}
    wanted = interpolate(base, tuned) if owner == "base" else {name: mixed(base[name], tuned[name]) for name in tuned}
    assert differences(body(found.state_dict()), wanted) == {}
    assert all(torch.equal(found.state_dict()[name], head) for name, head in heads.items())
    before = encoded(by_hand)
    by_hand.load_state_dict(rounded(wanted, base), strict=False)
    torch.testing.assert_close(encoded(found), encoded(by_hand), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoded(found), before, rtol=1e-3, atol=1e-4)
