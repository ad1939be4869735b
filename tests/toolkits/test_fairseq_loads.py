"""fairseq's own models, saved by its Trainer and loaded by its own loader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import soundfile
import torch
from float64 import Tensors, differences, interpolate, mixed, moved, rounded
from loaders import merged, toolkit, waves
from omegaconf import OmegaConf
from s3prl_models import LABS

from speechft_merge import ProbeRequest, compare
from speechft_merge.similarity.probe import BUILT_IN

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = {
    "hubert": ("hubert_pretraining", {"labels": ["km"], "label_rate": 50.0}),
    "wav2vec2": ("audio_pretraining", {}),
}
CRITERIA = {"hubert": "hubert", "wav2vec2": "wav2vec"}
CTC = {"hubert": "hubert_ctc", "wav2vec2": "wav2vec_ctc"}
ENCODER = "w2v_encoder.w2v_model."
HEADS = ("final_proj", "label_embs_concat", "quantizer", "project_q")
CLIPS = sorted(BUILT_IN.glob("*.flac"))[:4]
SYMBOLS = {"km": "01234567", "ltr": "abcdefgh"}


@pytest.fixture(autouse=True)
def _pickles_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq loads its files with torch.load as it was before torch 2.6."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def section(registry: str, name: str, **settings: Any) -> Any:
    """A part of fairseq's configuration, with what its dataclass has by default."""
    module, _, table = registry.rpartition(".")
    filled = OmegaConf.structured(getattr(toolkit(module), table)[name]())
    plain = OmegaConf.to_container(filled, enum_to_str=True) | {"_name": name} | settings  # type: ignore[operator]
    return OmegaConf.create(plain, flags={"allow_objects": True})


def train(task: Any, model: Any, criterion: str, file: Path, weights: Tensors | None = None) -> Tensors:
    """Have fairseq's Trainer save a model, with these weights; returns what it has saved."""
    whole = OmegaConf.structured(toolkit("fairseq.dataclass.configs").FairseqConfig())
    cfg = OmegaConf.create(OmegaConf.to_container(whole, enum_to_str=True), flags={"allow_objects": True})
    cfg.common.cpu = True
    cfg.task, cfg.model = task, model
    cfg.criterion = section("fairseq.criterions.CRITERION_DATACLASS_REGISTRY", criterion)
    cfg.optimizer = section("fairseq.optim.OPTIMIZER_DATACLASS_REGISTRY", "adam", lr=[1e-4])
    cfg.lr_scheduler = section("fairseq.optim.lr_scheduler.LR_SCHEDULER_DATACLASS_REGISTRY", "fixed", lr=[1e-4])
    made = toolkit("fairseq.tasks").setup_task(cfg.task)
    torch.manual_seed(0)
    built = made.build_model(cfg.model)
    built.load_state_dict(weights or built.state_dict())
    trainer = toolkit("fairseq.trainer").Trainer(cfg, made, built, made.build_criterion(cfg.criterion))
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(file), {"epoch": 1, "train_iterator": {"epoch": 1}})
    return {name: tensor.clone() for name, tensor in built.state_dict().items()}


class Pretrained(NamedTuple):
    """A pre-trained model in a file, and how to make others of its kind."""

    family: str
    task: Any
    model: Any
    weights: Tensors
    file: Path

    def continued(self) -> Tensors:
        """The same after more pre-training, in `more.pt`."""
        return train(self.task, self.model, CRITERIA[self.family], self.file.with_name("more.pt"), moved(self.weights))

    def recogniser(self) -> Tensors:
        """A fine-tune for CTC, in `ctc.pt`."""
        file = self.file.with_name("ctc.pt")
        task = section(
            "fairseq.tasks.TASK_DATACLASS_REGISTRY",
            "audio_finetuning",
            data=str(file.parent),
            labels="ltr",
            normalize=True,
        )
        model = section(
            "fairseq.models.MODEL_DATACLASS_REGISTRY",
            CTC[self.family],
            w2v_path=str(self.file),
            data=str(file.parent),
            normalize=True,
        )
        return train(task, model, "ctc", file, moved(train(task, model, "ctc", file)))


@pytest.fixture(params=[lab for lab in LABS if lab.family in TASKS], ids=lambda lab: f"{lab.family} large={lab.large}")
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Pretrained:
    toolkit("fairseq.dataclass.initialize").hydra_init()
    mend_hubert_ctc()
    for labels, symbols in SYMBOLS.items():
        (tmp_path / f"dict.{labels}.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    lab = request.param
    name, settings = TASKS[lab.family]
    task = section("fairseq.tasks.TASK_DATACLASS_REGISTRY", name, data=str(tmp_path), normalize=True, **settings)
    model = section("fairseq.models.MODEL_DATACLASS_REGISTRY", lab.family, **lab.settings | {"final_dim": 8})
    file = tmp_path / "base.pt"
    return Pretrained(lab.family, task, model, train(task, model, CRITERIA[lab.family], file), file)


def mend_hubert_ctc() -> None:
    """Give the configuration of HubertCtc a setting that its encoder reads, and that the last release forgot."""
    registry = toolkit("fairseq.models").MODEL_DATACLASS_REGISTRY
    if not hasattr(registry["hubert_ctc"], "autoregressive"):
        registry["hubert_ctc"] = dataclasses.make_dataclass(
            "HubertCtcConfig", [("autoregressive", bool, False)], bases=(registry["hubert_ctc"],)
        )


def load(file: Path) -> Any:
    (model,), _, _ = toolkit("fairseq.checkpoint_utils").load_model_ensemble_and_task([str(file)])
    return model.eval()


def features(model: Any) -> torch.Tensor:
    """Hidden states of an encoder, or logits of a recogniser."""
    torch.manual_seed(0)
    with torch.no_grad():
        if hasattr(model, "w2v_encoder"):
            found: torch.Tensor = model(source=waves(), padding_mask=None)["encoder_out"]
        else:
            found = model(source=waves(), padding_mask=None, mask=False, features_only=True)["x"]
    return found


def assert_loads(file: Path, owner: Path, wanted: Tensors) -> None:
    """The file loads as its owner does, has the wanted weights, and computes what these compute."""
    found, by_hand = load(file), load(owner)
    assert type(found) is type(by_hand)
    assert differences(found.state_dict(), wanted) == {}
    before = features(by_hand)
    by_hand.load_state_dict(rounded(wanted, by_hand.state_dict()))
    torch.testing.assert_close(features(found), features(by_hand), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features(found), before, rtol=1e-3, atol=1e-4)


def body(weights: Tensors) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(HEADS)}


def test_more_pre_training_merges_into_a_file_of_fairseq(base: Pretrained, tmp_path: Path) -> None:
    tuned = base.continued()
    file = merged(base.file, tmp_path / "more.pt", tmp_path / "out")
    assert_loads(file, base.file, interpolate(base.weights, body(tuned)))


def test_a_recogniser_merges_into_its_pre_trained_model(base: Pretrained, tmp_path: Path) -> None:
    tuned = base.recogniser()
    file = merged(base.file, tmp_path / "ctc.pt", tmp_path / "out")
    theirs = {name.removeprefix(ENCODER): tensor for name, tensor in tuned.items()}
    assert_loads(file, base.file, interpolate(base.weights, body(theirs)))


def test_a_merged_recogniser_keeps_its_ctc_layer(base: Pretrained, tmp_path: Path) -> None:
    tuned = base.recogniser()
    file = merged(base.file, tmp_path / "ctc.pt", tmp_path / "out", keep_head=True)
    ours = {ENCODER + name: tensor for name, tensor in body(base.weights).items()}
    head = {name for name in tuned if name not in ours}
    assert {"w2v_encoder.proj.weight", "w2v_encoder.proj.bias"} <= head
    quarter = {name: mixed(ours[name], tensor) for name, tensor in tuned.items() if name not in head}
    assert_loads(file, tmp_path / "ctc.pt", quarter | {name: tuned[name].double() for name in head})


def test_the_configuration_and_the_dictionaries_are_the_owners(base: Pretrained, tmp_path: Path) -> None:
    base.continued()
    read = toolkit("fairseq.checkpoint_utils").load_checkpoint_to_cpu
    whole, file = read(str(base.file)), merged(base.file, tmp_path / "more.pt", tmp_path / "out")
    found = read(str(file))
    assert found["cfg"] == whole["cfg"]
    assert found["task_state"].keys() == whole["task_state"].keys()
    for name, dictionaries in whole["task_state"].items():
        assert [d.symbols for d in found["task_state"][name]] == [d.symbols for d in dictionaries]


def layers_of(model: Any) -> list[torch.Tensor]:
    """The input of the first block and what each block gives, on the clips in turn: (frames of all, width), float64."""
    encoder = model.w2v_encoder.w2v_model if hasattr(model, "w2v_encoder") else model
    blocks = list(encoder.encoder.layers)
    found: list[list[torch.Tensor]] = [[] for _ in range(len(blocks) + 1)]
    handles = [blocks[0].register_forward_pre_hook(lambda _, args: found[0].append(args[0]))]
    for block, states in zip(blocks, found[1:], strict=True):
        handles.append(block.register_forward_hook(lambda _, __, out, states=states: states.append(out[0])))
    for clip in CLIPS:
        samples = torch.from_numpy(soundfile.read(clip, dtype="float32")[0])
        with torch.no_grad():
            encoder(torch.layer_norm(samples, samples.shape)[None], features_only=True, mask=False)
    for handle in handles:
        handle.remove()
    return [torch.cat([state[:, 0] for state in states]).double() for states in found]


@pytest.mark.parametrize("tuned", ["more.pt", "ctc.pt"])
def test_base_and_fine_tune_are_compared_without_a_config(base: Pretrained, tuned: str) -> None:
    (base.continued if tuned == "more.pt" else base.recogniser)()
    files = base.file, base.file.with_name(tuned)
    report = compare(*map(str, files), request=ProbeRequest(tuple(CLIPS), estimator="biased"))
    for layer, x, y in zip(report.layers, *(layers_of(load(file)) for file in files), strict=False):
        x, y = x - x.mean(0), y - y.mean(0)
        cross, own, other = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
        assert layer.pairs["base_finetuned"].cka == pytest.approx(float(cross / (own * other).sqrt()), abs=1e-4)
