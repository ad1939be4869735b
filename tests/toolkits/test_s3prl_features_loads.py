"""The figures of `compare` on S3PRL's files, against the hidden states that S3PRL's own upstreams give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import torch
from float64 import moved
from lab_files import decoar2, s3prl_base, s3prl_finetune, wavlm
from lab_models import Lab
from loaders import toolkit
from s3prl_models import LABS, build_s3prl

from speechft_merge import ProbeRequest, compare, open_merge
from speechft_merge.live import live_encoder
from speechft_merge.similarity.comparison import make_inputs
from speechft_merge.similarity.models import ComparedModels, encoder_sources
from speechft_merge.similarity.probe import BUILT_IN
from speechft_merge.stage1 import Schedule, StableFineTuning

if TYPE_CHECKING:
    from speechft_merge.similarity.encoders import Encoder

pytestmark = pytest.mark.filterwarnings("ignore")

DECOAR2 = Lab("decoar2")
WRITERS = {"wavlm": wavlm, "decoar2": decoar2}
CLIPS = sorted(BUILT_IN.glob("*.flac"))[:4]


@pytest.fixture(params=[*LABS, DECOAR2], ids=lambda lab: f"{lab.family} large" if lab.large else lab.family)
def lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as before torch 2.6
    sizes = toolkit("s3prl.upstream.decoar2.decoar2").args  # which its class has as constants
    for name, value in DECOAR2.settings.items():
        if name in sizes:
            monkeypatch.setitem(sizes, name, value)
    return request.param  # type: ignore[no-any-return]


def build(lab: Lab) -> Any:
    if lab.family != "decoar2":
        return build_s3prl(lab)
    torch.manual_seed(0)
    return toolkit("s3prl.upstream.decoar2.decoar2").Decoar2()


class Pair:
    """A base file, the file of an S3PRL fine-tune, and S3PRL's own upstreams with their weights."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.base_path, self.finetuned_path = str(folder / "base.pt"), str(folder / "dev-best.ckpt")
        torch.save(WRITERS.get(lab.family, s3prl_base)(lab, build(lab).state_dict()), self.base_path)
        hub = toolkit(f"s3prl.upstream.{lab.family}.hubconf")
        self.base, self.finetuned = (getattr(hub, f"{lab.family}_local")(self.base_path).eval() for _ in range(2))
        self.finetuned.load_state_dict(moved(self.base.state_dict()))
        weights = self.finetuned.state_dict()
        torch.save(s3prl_finetune(lab, {}) | {"Upstream": weights}, self.finetuned_path)  # as its runner saves it

    def encoders(self) -> tuple[Encoder, Any]:
        """Our base, and what makes its inputs."""
        with open_merge(self.base_path, self.finetuned_path) as opened:
            models = ComparedModels(opened.base, opened.finetuned, opened.plan)
            live, sources = live_encoder(models, torch.device("cpu")), encoder_sources(models)
        return live.encoder, make_inputs(*sources)[0]


Samples = np.ndarray[Any, np.dtype[np.float32]]


def read(clip: Path) -> Samples:
    samples: Samples = soundfile.read(clip, dtype="float32")[0]
    return samples


def states(upstream: Any, samples: Samples) -> list[torch.Tensor]:
    """Of each layer (frames, width): S3PRL's are the input of each block and the output of the encoder."""
    with torch.no_grad():
        return [state[0] for state in upstream([torch.from_numpy(samples)])["hidden_states"]]


def matched(lab: Lab, layers: list[Any]) -> list[Any]:
    """Without the last block where a norm follows: S3PRL has no state between them."""
    return layers if not lab.large else [*layers[:-2], layers[-1]]


def test_every_layer_is_what_s3prl_computes_of_the_same_weights(lab: Lab, tmp_path: Path) -> None:
    pair = Pair(lab, tmp_path)
    encoder, maker = pair.encoders()
    for clip in CLIPS:
        samples = read(clip)
        samples /= samples.std()  # S3PRL adds 1e-5 to the variance before it divides by its root, transformers 1e-7
        (batch,) = maker.batches([samples])
        (found,) = encoder.run(batch)
        for ours, theirs in zip(matched(lab, [*found.values()]), states(pair.base, samples), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_a_base_and_a_fine_tune_of_s3prl_are_compared_without_a_config(lab: Lab, tmp_path: Path) -> None:
    pair = Pair(lab, tmp_path)
    report = compare(pair.base_path, pair.finetuned_path, request=ProbeRequest(tuple(CLIPS), estimator="biased"))
    both = [[states(upstream, read(clip)) for clip in CLIPS] for upstream in (pair.base, pair.finetuned)]
    for number, layer in enumerate(matched(lab, [*report.layers])):
        x, y = (torch.cat([clip[number] for clip in clips]).double() for clips in both)
        x, y = x - x.mean(0), y - y.mean(0)
        cross, own, other = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
        assert layer.pairs["base_finetuned"].cka == pytest.approx(float(cross / (own * other).sqrt()), abs=5e-5)


@pytest.mark.parametrize("lab", [DECOAR2], indirect=True, ids=["decoar2"])
def test_in_stage_1_all_of_s3prls_decoar2_trains_but_at_first_the_head_alone(lab: Lab, tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"Upstream": Pair(lab, tmp_path).base, "Downstream": torch.nn.Linear(lab.width, 3)})
    stage = StableFineTuning(model, Schedule(20))
    names, heads = {name for name, _ in model.named_parameters()}, {"Downstream.weight", "Downstream.bias"}
    for step, training in ((0, heads), (2, names)):
        stage.begin(step)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == training
