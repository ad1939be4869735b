"""FunASR's own recognisers, saved as its trainer does and loaded by its own loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import Tensors, differences, interpolate, moved, rounded
from loaders import merged, toolkit

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"output_size": 32, "attention_heads": 2, "linear_units": 64, "num_blocks": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "TransformerEncoder": {},
    "ConformerEncoder": {"cnn_module_kernel": 5},
    "EBranchformerEncoder": {"cgmlp_linear_units": 64, "cgmlp_conv_kernel": 5, "merge_conv_kernel": 5},
    "SANMEncoder": {"kernel_size": 5, "input_layer": "pe"},
}
DECODER = {"attention_heads": 2, "linear_units": 64, "num_blocks": 1}
WORDS = {"base": 12, "more": 12, "other": 15}


def build(encoder: str, words: int) -> Any:
    """A recogniser with random weights."""
    for name in ("transformer", "conformer", "e_branchformer", "sanm"):
        toolkit(f"funasr.models.{name}.model")
    torch.manual_seed(0)
    classes = toolkit("funasr.register").tables.model_classes
    return classes["Transformer"](
        input_size=16,
        vocab_size=words,
        encoder=encoder,
        encoder_conf=SIZES | ENCODERS[encoder],
        decoder="TransformerDecoder",
        decoder_conf=DECODER,
        ctc_weight=0.3,
    ).eval()


def body(weights: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in weights.items() if name.startswith("encoder.")}


def encoded(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        found: torch.Tensor = model.encode(torch.randn(1, 40, 16), torch.tensor([40]))[0]
    return found


class Models:
    """A base, the same after more training, and a fine-tune for other words, each in a file."""

    def __init__(self, encoder: str, folder: Path) -> None:
        self.encoder, self.folder = encoder, folder
        for name, words in WORDS.items():
            model = build(encoder, words)
            own = model.state_dict()
            if name == "base":
                tuned = moved(own)
                self.base, self.tuned = body(own), body(tuned)
            else:
                model.load_state_dict({n: t for n, t in tuned.items() if t.shape == own[n].shape}, strict=False)
            torch.save({"epoch": 1, "state_dict": model.state_dict()}, self.file(name))  # as its trainer writes it

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def load(self, name: str, file: Path) -> Any:
        """What FunASR makes of a file; it warns of what is missing, and leaves it as it was."""
        model = build(self.encoder, WORDS[name])
        load = toolkit("funasr.train_utils.load_pretrained_model").load_pretrained_model
        load(str(file), model, ignore_init_mismatch=False, scope_map=[])
        return model


@pytest.fixture(params=ENCODERS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    return Models(request.param, tmp_path)


@pytest.mark.parametrize(("theirs", "keep_head"), [("more", False), ("other", False), ("other", True)])
def test_a_merged_file_loads(
    theirs: str, keep_head: bool, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = theirs if keep_head else "base"
    file = merged(models.file("base"), models.file(theirs), tmp_path / "out", keep_head=keep_head)
    capsys.readouterr()
    found, by_hand = models.load(owner, file), models.load(owner, models.file(owner))
    assert "miss key" not in capsys.readouterr().out
    wanted = interpolate(models.base, models.tuned)
    assert differences(body(found.state_dict()), wanted) == {}
    before = encoded(by_hand)
    by_hand.load_state_dict(rounded(wanted, models.base), strict=False)
    torch.testing.assert_close(encoded(found), encoded(by_hand), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoded(found), before, rtol=1e-3, atol=1e-4)
