"""Stage 1 in S3PRL's real runner, held against the official schedule and experts, whose rules are written out here."""

from __future__ import annotations

import runpy
import sys
from argparse import Namespace
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import yaml
from lab_files import s3prl_base, wavlm
from loaders import merged, toolkit
from s3prl_models import LABS, build_s3prl

if TYPE_CHECKING:
    from pathlib import Path

    from lab_models import Lab

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, PEAK, FINETUNE_STEPS = 30, 0.001, 0.1
BASES = [lab for lab in LABS if not lab.large]


class Step(NamedTuple):
    """What an optimizer step used."""

    rate: float
    trains: dict[str, bool]
    weights: dict[str, torch.Tensor]
    """Of the upstream, before the step."""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """Our runner, noting each step. What S3PRL 0.4.18 misses of newer packages, and does not use here, is stubbed."""
    hub, boards = ModuleType("s3prl.hub"), ModuleType("tensorboardX")
    for family in ("hubert", "wav2vec2", "wavlm"):
        setattr(hub, f"{family}_local", getattr(toolkit(f"s3prl.upstream.{family}.hubconf"), f"{family}_local"))
    boards.SummaryWriter = lambda *_: Namespace(add_scalar=lambda *_, **__: None, close=lambda: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", boards)
    monkeypatch.setitem(sys.modules, "s3prl.hub", hub)
    monkeypatch.setattr(toolkit("s3prl"), "hub", hub, raising=False)
    for name in ("HfFolder", "Repository"):
        monkeypatch.setattr(toolkit("huggingface_hub"), name, None, raising=False)
    monkeypatch.setattr(toolkit("s3prl.downstream.example.dataset"), "SAMPLE_RATE", 200)  # 1000 to 4000 samples a clip
    # the tiny models' CNNs are shorter than those of 320 samples a frame, which the experts state
    monkeypatch.setattr(toolkit("s3prl.upstream.interfaces"), "TOLERABLE_SEQLEN_DIFF", 10_000)
    stable = toolkit("examples.stage1.s3prl_runner").StableRunner

    class Noting(stable):  # type: ignore[misc]
        def _get_optimizer(self, models: Any) -> Any:
            optimizer = super()._get_optimizer(models)
            self.steps: list[Step] = []
            optimizer.register_step_pre_hook(lambda *_: self.steps.append(self.note(optimizer)))
            return optimizer

        def note(self, optimizer: Any) -> Step:
            (rate,) = {group["lr"] for group in optimizer.param_groups}
            named = dict(self.upstream.model.model.named_parameters())
            trains = {name: parameter.requires_grad for name, parameter in named.items()}
            return Step(rate, trains, {name: parameter.detach().clone() for name, parameter in named.items()})

    return Noting


def settings(lab: Lab, folder: Path, checkpoint: Path | None = None) -> tuple[Namespace, dict[str, Any]]:
    """What run_downstream.py makes of `-m train -u ..._local -k base.pt -d example -f -s last_hidden_state`."""
    write = wavlm if lab.family == "wavlm" else s3prl_base
    torch.save(write(lab, build_s3prl(lab).state_dict()), folder / "base.pt")
    args = Namespace(
        upstream=f"{lab.family}_local", upstream_ckpt=str(folder / "base.pt"), upstream_model_config=None,
        upstream_refresh=False, upstream_trainable=True, upstream_feature_selection="last_hidden_state",
        upstream_layer_selection=None, upstream_feature_normalize=False, downstream="example", expdir=str(folder),
        init_ckpt=checkpoint and str(checkpoint), device="cpu", seed=1, push_to_hf_hub=False,
    )  # fmt: skip
    modelrc = {"input_dim": 8, "agg_module": "MP", "module": "UtteranceLevel", "hidden_dim": 8}
    config = {
        "runner": {
            "total_steps": STEPS, "gradient_clipping": 1, "gradient_accumulate_steps": 2, "log_step": 10,
            "eval_step": 10, "save_step": 10, "max_keep": 9, "eval_dataloaders": ["dev"], "evaluate_ratio": 0.02,
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": PEAK},
        "scheduler": {"name": "stable_finetuning_schedule"},
        "grad_scheduler": {"finetune_steps": FINETUNE_STEPS},
        "downstream_expert": {
            "datarc": {"num_workers": 0, "train_batch_size": 2, "eval_batch_size": 1}, "modelrc": modelrc,
        },
    }  # fmt: skip
    return args, config


def official_rate(current_step: int) -> float:
    warmup, held = int(STEPS * 0.1), int(STEPS * 0.1) + int(STEPS * 0.4)
    if current_step < warmup:
        return current_step / max(1, warmup)
    if current_step < held:
        return 1.0
    return max(0.0, (STEPS - current_step) / max(1, STEPS - held))


def official_trains(name: str, global_step: int) -> bool:
    """Which of an expert's parameters `set_require_grad` leaves unfrozen; the runner calls its first step 1."""
    return global_step >= STEPS * FINETUNE_STEPS and not name.startswith("feature_extractor")


@pytest.mark.parametrize("lab", BASES, ids=lambda lab: lab.family)
def test_phases_frozen_bits_and_rates_are_the_official_ones(lab: Lab, runner: Any, tmp_path: Path) -> None:
    run = runner(*settings(lab, tmp_path))
    run.train()
    assert [step.rate for step in run.steps] == [PEAK * official_rate(step) for step in range(STEPS)]
    for number, step in enumerate(run.steps, 1):
        assert step.trains == {name: official_trains(name, number) for name in step.trains}, number
    first, thawed = run.steps[0].weights, run.steps[int(STEPS * FINETUNE_STEPS) - 1].weights
    assert [name for name in first if not torch.equal(first[name], thawed[name])] == []
    last = run.steps[-1].weights
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved
    assert not any(name.startswith("feature_extractor") for name in moved)

    file = merged(tmp_path / "base.pt", tmp_path / f"states-{STEPS}.ckpt", tmp_path / "out")
    loaded = getattr(sys.modules["s3prl.hub"], f"{lab.family}_local")(str(file)).state_dict()
    for name in moved - {"mask_emb"}:
        halfway = first[name] + 0.25 * (run.upstream.model.model.get_parameter(name).detach() - first[name])
        torch.testing.assert_close(loaded[f"model.{name}"], halfway)


def test_a_resumed_run_goes_on_in_its_phase(runner: Any, tmp_path: Path) -> None:
    args, config = settings(BASES[0], tmp_path)
    runner(args, config | {"runner": config["runner"] | {"save_step": 2, "max_keep": 99}}).train()
    with torch.serialization.safe_globals([Namespace]):
        resumed = runner(*settings(BASES[0], tmp_path, tmp_path / "states-2.ckpt"))
        resumed.train()
    assert [step.rate for step in resumed.steps] == [PEAK * official_rate(step) for step in range(2, STEPS)]
    for number, step in enumerate(resumed.steps, 3):
        assert step.trains == {name: official_trains(name, number) for name in step.trains}, number


def test_it_takes_the_options_of_run_downstream(runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, config = settings(BASES[0], tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.dump(config))
    monkeypatch.setattr(toolkit("torchaudio"), "set_audio_backend", lambda _: None, raising=False)
    monkeypatch.setattr(toolkit("s3prl.run_downstream"), "hack_isinstance", lambda: None)  # for all of Python
    words = f"-m train -u {args.upstream} -k {args.upstream_ckpt} -d example -f -s last_hidden_state --device cpu"
    files = ["-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path / "exp")]
    monkeypatch.setattr(sys, "argv", ["s3prl_runner", *words.split(), *files])
    runpy.run_module("examples.stage1.s3prl_runner", run_name="__main__")
    file = merged(tmp_path / "base.pt", tmp_path / "exp" / f"states-{STEPS}.ckpt", tmp_path / "out")
    assert file.name == "merged_model.pt"


def test_a_frozen_upstream_is_an_error(runner: Any, tmp_path: Path) -> None:
    from speechft_merge.errors import UsageError

    args, config = settings(BASES[0], tmp_path)
    args.upstream_trainable = False
    with pytest.raises(UsageError, match="stage 1 trains the upstream; pass -f"):
        runner(args, config)
