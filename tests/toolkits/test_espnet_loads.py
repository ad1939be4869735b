"""ESPnet's own recognisers, saved as its trainer does and loaded by its own task."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from float64 import Tensors, differences, interpolate, moved, rounded
from loaders import merged, toolkit, waves

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

ENCODERS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "conformer": {"cnn_module_kernel": 5},
    "e_branchformer": {"cgmlp_linear_units": 64, "cgmlp_conv_kernel": 5, "merge_conv_kernel": 5},
}
DECODER = {"attention_heads": 2, "linear_units": 64, "num_blocks": 1}
SYMBOLS = {"base": "abcdefgh", "more": "abcdefgh", "other": "zyxwvutsrqp"}


def configuration(encoder: str, symbols: str) -> dict[str, Any]:
    """What a `config.yaml` of ESPnet holds."""
    defaults = vars(toolkit("espnet2.tasks.asr").ASRTask.get_parser().parse_args([]))
    return defaults | {
        "token_list": ["<blank>", "<unk>", *symbols, "<sos/eos>"],
        "frontend": "default",
        "frontend_conf": {"n_fft": 256, "hop_length": 160, "n_mels": 16, "fs": 16000},
        "normalize": "utterance_mvn",
        "encoder": encoder,
        "encoder_conf": {"output_size": 32, "attention_heads": 2, "num_blocks": 2, **ENCODERS[encoder]},
        "decoder": "transformer",
        "decoder_conf": DECODER,
        "model_conf": {"ctc_weight": 0.3},
    }


def body(weights: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in weights.items() if name.startswith("encoder.")}


def encoded(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.encode(waves(), torch.tensor([4000]))[0]
    return found


class Models:
    """A base, the same after more training, and a fine-tune for other symbols, each with its configuration."""

    def __init__(self, encoder: str, folder: Path) -> None:
        self.folder = folder
        for name, symbols in SYMBOLS.items():
            whole = configuration(encoder, symbols)
            self.config(name).write_text(yaml.safe_dump(whole))
            torch.manual_seed(0)
            model = toolkit("espnet2.tasks.asr").ASRTask.build_model(argparse.Namespace(**whole))
            if name == "base":
                self.base = body(model.state_dict())
                self.tuned = moved(self.base)
            else:
                model.load_state_dict(self.tuned, strict=False)
            torch.save(model.state_dict(), self.file(name))  # as espnet2's trainer writes it

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.pth"

    def build(self, name: str, file: Path | None = None) -> Any:
        """What ESPnet makes of one model's configuration, and a file of weights."""
        task = toolkit("espnet2.tasks.asr").ASRTask
        return task.build_model_from_file(str(self.config(name)), file and str(file), "cpu")[0].eval()


@pytest.fixture(params=ENCODERS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    return Models(request.param, tmp_path)


@pytest.mark.parametrize(("theirs", "keep_head"), [("more", False), ("other", False), ("other", True)])
def test_a_model_loads_the_weights_of_a_merge(theirs: str, keep_head: bool, models: Models, tmp_path: Path) -> None:
    owner = theirs if keep_head else "base"
    file = merged(models.file("base"), models.file(theirs), tmp_path / "out", keep_head=keep_head)
    found, by_hand = models.build(owner, file), models.build(owner, models.file(owner))
    wanted = interpolate(models.base, models.tuned)
    assert differences(body(found.state_dict()), wanted) == {}
    before = encoded(by_hand)
    by_hand.load_state_dict(rounded(wanted, models.base), strict=False)
    torch.testing.assert_close(encoded(found), encoded(by_hand), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoded(found), before, rtol=1e-3, atol=1e-4)
