"""NeMo's own recognisers, saved and restored by NeMo as .nemo, and their weights unpacked."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import Tensors, differences, interpolate, moved, rounded
from loaders import merged, toolkit, waves

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

SYMBOLS = list("abcdefgh ")
OTHERS = list("zyxwvutsrqp ")
SILENT = dict.fromkeys(("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att"), 0.0)
FAST_CONFORMER = {"subsampling": "dw_striding", "subsampling_factor": 8}
ENCODERS = {"Conformer": {"subsampling_factor": 4}, "FastConformer": FAST_CONFORMER}
WEIGHTS = "model_weights.ckpt"


def build(encoder: str) -> Any:
    """A CTC recogniser with random weights."""
    modules = "nemo.collections.asr.modules"
    sizes = {"feat_in": 16, "n_layers": 2, "d_model": 32, "n_heads": 2, "ff_expansion_factor": 2, "conv_kernel_size": 5}
    cfg = {
        "sample_rate": 16000,
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "features": 16,
            "n_fft": 512,
            "dither": 0.0,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder",
            "subsampling_conv_channels": 8,
            **sizes,
            **SILENT,
            **ENCODERS[encoder],
        },
        "decoder": {
            "_target_": f"{modules}.ConvASRDecoder",
            "feat_in": 32,
            "num_classes": len(SYMBOLS),
            "vocabulary": SYMBOLS,
        },
    }
    torch.manual_seed(0)
    return recogniser()(cfg=toolkit("omegaconf").OmegaConf.create(cfg)).eval()


def recogniser() -> Any:
    return toolkit("nemo.collections.asr").models.EncDecCTCModel


def restore(file: Path) -> Any:
    return recogniser().restore_from(str(file), map_location="cpu").eval()


def body(weights: Tensors) -> Tensors:
    """The encoder; before it are a window and a filter bank, which training leaves alone."""
    return {name: tensor.clone() for name, tensor in weights.items() if name.startswith("encoder.")}


def encoded(model: Any) -> torch.Tensor:
    with torch.no_grad():
        signal, length = model.preprocessor(input_signal=waves(), length=torch.tensor([4000]))
        found: torch.Tensor = model.encoder(audio_signal=signal, length=length)[0]
    return found


class Pair:
    """A base, and its fine-tune for other symbols, as .nemo."""

    def __init__(self, encoder: str, folder: Path) -> None:
        self.files = folder / "base.nemo", folder / "tuned.nemo"
        self.models = build(encoder), build(encoder)
        base, tuned = self.models
        self.base = body(base.state_dict())
        self.tuned = moved(self.base)
        tuned.load_state_dict(self.tuned, strict=False)
        tuned.change_vocabulary(OTHERS)
        for model, file in zip(self.models, self.files, strict=True):
            model.save_to(str(file))

    @property
    def wanted(self) -> Tensors:
        return interpolate(self.base, self.tuned)

    def assert_merged(self, found: Any, keep_head: bool) -> None:
        """It is as one of the two, with the wanted encoder, which computes what one made by hand computes."""
        by_hand = self.models[keep_head]
        assert found.decoder.vocabulary == by_hand.decoder.vocabulary
        assert differences(body(found.state_dict()), self.wanted) == {}
        before = encoded(by_hand)
        by_hand.load_state_dict(rounded(self.wanted, self.base), strict=False)
        torch.testing.assert_close(encoded(found), encoded(by_hand), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(encoded(found), before, rtol=1e-3, atol=1e-4)


@pytest.fixture(params=ENCODERS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(request.param, tmp_path)


@pytest.mark.parametrize("keep_head", [False, True])
def test_nemo_restores_the_merge_of_two_archives(keep_head: bool, pair: Pair, tmp_path: Path) -> None:
    file = merged(*pair.files, tmp_path / "out", keep_head=keep_head)
    assert file.suffix == ".nemo"
    pair.assert_merged(restore(file), keep_head)


@pytest.mark.parametrize("keep_head", [False, True])
def test_nemos_model_loads_the_merge_of_two_unpacked_files(keep_head: bool, pair: Pair, tmp_path: Path) -> None:
    for file in pair.files:
        with tarfile.open(file) as archive:
            archive.extractall(tmp_path / file.stem, filter="data")
    weights = (tmp_path / file.stem / WEIGHTS for file in pair.files)
    found = restore(pair.files[keep_head])
    found.load_state_dict(torch.load(merged(*weights, tmp_path / "out", keep_head=keep_head)), strict=True)
    pair.assert_merged(found, keep_head)
