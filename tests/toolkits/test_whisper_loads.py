"""openai-whisper's own files, and its names against those of transformers."""

from __future__ import annotations

import dataclasses
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import Tensors, differences, interpolate, moved, rounded
from loaders import merged, toolkit
from models import build, transformers
from options import UNSYNCED

from speechft_merge import Recipe, merge
from speechft_merge.plan.findings import Level

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_mel_bins": 80,
    "vocab_size": 200,
    "max_source_positions": 30,
    "max_target_positions": 20,
}
NAMES = {
    r"^layers\.": "blocks.",
    r"self_attn_layer_norm": "attn_ln",
    r"encoder_attn_layer_norm": "cross_attn_ln",
    r"final_layer_norm": "mlp_ln",
    r"self_attn\.": "attn.",
    r"encoder_attn\.": "cross_attn.",
    r"q_proj": "query",
    r"k_proj": "key",
    r"v_proj": "value",
    r"out_proj": "out",
    r"fc1": "mlp.0",
    r"fc2": "mlp.2",
    r"embed_positions\.weight": "positional_embedding",
    r"embed_tokens": "token_embedding",
}
"""transformers' names below encoder and decoder -> openai's; from transformers' convert_openai_to_hf.py."""

OF_OPENAI = [
    ("openai", "openai", False),
    ("openai", "openai", True),
    ("openai", "transformers", False),
    ("transformers", "openai", True),
]
"""Base, fine-tune, and whether the head is kept: what openai's package must be able to load."""


def openai_name(name: str) -> str:
    stack, _, rest = name.removeprefix("model.").partition(".")
    last = "ln_post" if stack == "encoder" else "ln"
    for pattern, replacement in {**NAMES, r"^layer_norm": last}.items():
        rest = re.sub(pattern, replacement, rest)
    return f"{stack}.{rest}"


class Pair:
    """A base and a fine-tune, each in both forms."""

    def __init__(self, folder: Path) -> None:
        whisper = toolkit("whisper.model")
        self.dims = whisper.ModelDimensions(80, 30, 32, 2, 2, 200, 20, 32, 2, 2)
        self.folder = folder
        ours = build("Whisper", "ForConditionalGeneration", **SIZES)
        self.base = self.save("base", ours)
        ours.load_state_dict(moved(ours.state_dict()))
        self.tuned = self.save("tuned", ours)

    def save(self, name: str, model: Any) -> Tensors:
        model.save_pretrained(self.folder / name)
        weights = {openai_name(n): t.clone() for n, t in model.state_dict().items() if n != "proj_out.weight"}
        self.model().load_state_dict(weights)
        whole = {"dims": dataclasses.asdict(self.dims), "model_state_dict": weights}
        torch.save(whole, self.folder / f"{name}.pt")
        return weights

    def model(self) -> Any:
        return toolkit("whisper.model").Whisper(self.dims).eval()

    def path(self, name: str, toolkit: str) -> str:
        return str(self.folder / (f"{name}.pt" if toolkit == "openai" else name))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("whisper"))


def logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mel = torch.randn(1, 80, 60)
    with torch.no_grad():
        return model.embed_audio(mel), model(mel, torch.tensor([[1, 5, 7]]))


@pytest.mark.parametrize(("ours", "theirs", "keep_head"), OF_OPENAI)
def test_openais_loader_loads_a_merged_file(
    ours: str, theirs: str, keep_head: bool, pair: Pair, tmp_path: Path
) -> None:
    file = merged(pair.path("base", ours), pair.path("tuned", theirs), tmp_path / "out", keep_head=keep_head)
    found = toolkit("whisper").load_model(str(file), device="cpu")
    assert found.dims == pair.dims
    wanted = interpolate(pair.base, pair.tuned)
    assert differences(found.state_dict(), wanted) == {}
    by_hand = pair.model()
    by_hand.load_state_dict(rounded(wanted, pair.base))
    torch.testing.assert_close(logits(found), logits(by_hand), rtol=1e-4, atol=1e-5)


def test_a_fine_tune_of_openais_package_merges_into_a_folder(pair: Pair, tmp_path: Path) -> None:
    merge(pair.path("base", "transformers"), pair.path("tuned", "openai"), tmp_path / "out", options=UNSYNCED)
    kind = transformers().WhisperForConditionalGeneration
    model, told = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in told.items() if value} == {}
    found = {openai_name(name): tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    assert differences(found, interpolate(pair.base, pair.tuned)) == {}


@pytest.mark.parametrize("theirs", ["openai", "transformers"])
def test_transformers_loads_the_merge_of_openais_file_and_computes_the_same(
    theirs: str, pair: Pair, tmp_path: Path
) -> None:
    recipe = Recipe(format="safetensors")
    result = merge(pair.path("base", "openai"), pair.path("tuned", theirs), tmp_path / "out", recipe, options=UNSYNCED)
    (note,) = result.findings
    assert note.level is Level.NOTE
    assert "holds no tokenizer.json and no generation_config.json, so the merge has none" in note.text
    kind = transformers().WhisperForConditionalGeneration
    model, told = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in told.items() if value} == {}
    by_hand = pair.model()
    by_hand.load_state_dict(rounded(interpolate(pair.base, pair.tuned), pair.base))
    torch.manual_seed(0)
    mel, tokens = torch.randn(1, 80, 60), torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        found = model(mel, decoder_input_ids=tokens).logits
        torch.testing.assert_close(found, by_hand(mel, tokens), rtol=0, atol=1e-4)
    extractor = transformers().WhisperFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.feature_size, extractor.n_fft) == (80, 400)


def test_openais_loader_loads_the_merge_with_a_classifier(pair: Pair, tmp_path: Path) -> None:
    """transformers' class of Whisper's encoder alone; the decoder stays."""
    tuned = build("Whisper", "ForAudioClassification", **SIZES)
    whole = transformers().WhisperModel.from_pretrained(pair.path("base", "transformers"))
    tuned.encoder.load_state_dict(moved(whole.encoder.state_dict()))
    tuned.save_pretrained(tmp_path / "tuned")
    file = merged(pair.path("base", "openai"), tmp_path / "tuned", tmp_path / "out")
    found = toolkit("whisper").load_model(str(file), device="cpu").state_dict()
    encoder = {openai_name(n): tensor for n, tensor in tuned.state_dict().items() if n.startswith("encoder.")}
    assert differences(found, interpolate(pair.base, encoder)) == {}


def test_speechbrains_wrapper_of_whisper_loads_the_merge_of_two(pair: Pair, tmp_path: Path) -> None:
    transformers().WhisperFeatureExtractor(80).save_pretrained(tmp_path / "source")
    shutil.copytree(pair.path("base", "transformers"), tmp_path / "source", dirs_exist_ok=True)
    wrapper = toolkit("speechbrain.integrations.huggingface.whisper").Whisper
    model = wrapper(str(tmp_path / "source"), str(tmp_path / "cache"), encoder_only=True, freeze=True)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = moved(base) | {"_mel_filters": base["_mel_filters"]}  # a constant
    torch.save(base, tmp_path / "base.ckpt")
    torch.save(tuned, tmp_path / "tuned.ckpt")
    file = merged(tmp_path / "base.ckpt", tmp_path / "tuned.ckpt", tmp_path / "out")
    model.load_state_dict(torch.load(file), strict=True)
    assert differences(model.state_dict(), interpolate(base, tuned)) == {}
