"""Stage 1 in transformers' Trainer: the same as the plain loop, through accumulation, resumption and DDP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import build, transformers
from test_stage import PEAK, STEPS, batch, hubert, moved, of_part, plain_loop, snapshot

from speechft_merge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


DISTRIBUTED = """
import os, sys, torch
from test_stage import PEAK, STEPS, batch, hubert
from speechft_merge.stage1.schedule import Schedule
from speechft_merge.stage1.stage import StableFineTuning

model, folder = hubert(), sys.argv[1]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
stage = StableFineTuning(model, Schedule(STEPS))
parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.1)
scheduler = stage.scheduler(optimizer)
for step in range(STEPS):
    stage.begin(step)
    parallel(**batch(step)).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
torch.save(model.state_dict(), f"{folder}/weights.pt")
os._exit(0)
"""
"""In a process of its own, left at once: the reducer's destructor may wait for ever for a thread of gloo's."""


class Batches(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """The rows of the plain loop's batches, in its order, a row at a time."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(10_000):
            rows = batch(step)
            for row in range(2):
                yield {name: tensor[row] for name, tensor in rows.items()}


def trainer(model: Any, folder: Path, *, optimizers: Any = (None, None), callback: Any = None, **settings: Any) -> Any:
    from speechft_merge.stage1.trainer import StableFineTuningCallback

    arguments = transformers().TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "learning_rate": PEAK,
            "weight_decay": 0.1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "logging_steps": 1,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        | settings,
    )
    return transformers().Trainer(
        model=model,
        args=arguments,
        train_dataset=Batches(),
        callbacks=[callback or StableFineTuningCallback()],
        optimizers=optimizers,
    )


def test_it_is_the_plain_loop(tmp_path: Path) -> None:
    """Down to the last bit, given the same optimizer."""
    plain, trained = hubert(), hubert()
    plain_loop(plain, range(STEPS))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=PEAK, weight_decay=0.1)
    trainer(trained, tmp_path, optimizers=(optimizer, None)).train()
    assert moved(snapshot(plain), trained) == set()


def test_its_own_optimizer_holds_the_encoder_and_its_log_the_learning_rate(tmp_path: Path) -> None:
    from speechft_merge.stage1.schedule import Schedule

    model = hubert()
    before = snapshot(model)
    run = trainer(model, tmp_path)
    run.train()
    assert moved(before, model) == of_part(model, "head") | of_part(model, "encoder") - {"hubert.masked_spec_embed"}
    logged = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([PEAK * Schedule(STEPS).learning_rate(step) for step in range(STEPS)])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    plain, trained = hubert(), hubert()
    before = snapshot(trained)
    plain_loop(plain, range(STEPS), accumulate=2)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=PEAK, weight_decay=0.1)
    run = trainer(trained, tmp_path, optimizers=(optimizer, None), gradient_accumulation_steps=2)
    run.model_accepts_loss_kwargs = (
        False  # it would add losses up, not average them, as this model does not count items
    )
    run.train()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(parameter, trained.get_parameter(name), atol=1e-5), name
    assert moved(before, trained) & of_part(trained, "cnn") == set()


@pytest.mark.parametrize("stop", [1, 7, 15])
def test_a_run_resumed_in_the_middle_equals_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    whole, halves = hubert(), hubert()
    saving = {"save_strategy": "steps", "save_steps": stop, "save_total_limit": 20}
    trainer(whole, tmp_path, **saving).train()
    resumed = trainer(halves, tmp_path / "resumed", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.state.global_step == STEPS
    assert moved(snapshot(whole), halves) == set()


def test_low_precision_freezes_all_the_same(tmp_path: Path) -> None:
    model = hubert()
    before = snapshot(model)
    trainer(model, tmp_path, bf16=True).train()
    assert moved(before, model) == of_part(model, "head") | of_part(model, "encoder") - {"hubert.masked_spec_embed"}


def test_the_distributed_wrapper_waits_for_no_frozen_parameter(tmp_path: Path) -> None:
    """One process, but the real reducer: it would stop at the second step without `find_unused_parameters`."""
    plain, wrapped = hubert(), hubert()
    plain_loop(plain, range(STEPS))
    command = [sys.executable, "-c", DISTRIBUTED, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(command, env=environment, check=True, timeout=300)
    wrapped.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert moved(snapshot(plain), wrapped) == set()


def test_the_shares_of_the_schedule_are_the_callbacks(tmp_path: Path) -> None:
    from speechft_merge.stage1.schedule import Schedule
    from speechft_merge.stage1.trainer import StableFineTuningCallback

    shares = {"head_only": 0.3, "warmup": 0.2, "hold": 0.1, "first_step": 1}
    run = trainer(hubert(), tmp_path, callback=StableFineTuningCallback(**shares))
    run.train()
    logged = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([PEAK * Schedule(STEPS, **shares).learning_rate(step) for step in range(STEPS)])
    stage = next(each.stage for each in run.callback_handler.callbacks if isinstance(each, StableFineTuningCallback))
    assert stage is not None
    assert stage.schedule.head_only_steps == 5
    with pytest.raises(UsageError, match="shares of all steps"):
        StableFineTuningCallback(hold=0.95)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type=cosine has no effect"),
        ({"warmup_steps": 5, "lr_scheduler_type": "constant"}, "lr_scheduler_type=constant, warmup_steps=5 has"),
    ],
)
def test_what_is_replaced_is_said_once(
    settings: dict[str, Any], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(hubert(), tmp_path, **settings).train()
    messages = [each.getMessage() for each in caplog.records if each.name.startswith("speechft_merge")]
    assert len(messages) == (said is not None)
    assert said is None or said in messages[0]


# peft
def lora(**settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(hubert(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings))


def test_of_a_model_with_lora_the_head_trains_first_and_the_adapters_later(tmp_path: Path) -> None:
    model = lora(modules_to_save=["projector", "classifier"])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {name for name in trainable if "modules_to_save" in name}
    before = snapshot(model)
    run = trainer(model, tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    assert moved(before, model) == trainable
    assert trainable - head == {name for name in trainable if "lora_" in name}
    early = lora(modules_to_save=["projector", "classifier"])
    early.load_adapter(str(tmp_path / "checkpoint-2"), "default", is_trainable=True)
    assert moved(before, early) == head


def test_a_head_that_peft_froze_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the head of .* is frozen .*peft: modules_to_save"):
        trainer(lora(), tmp_path).train()


def test_where_memory_runs_out_while_the_encoder_is_frozen_smaller_batches_are_tried(tmp_path: Path) -> None:
    model, calls = hubert(), []
    forward, before = model.forward, snapshot(model)

    def exhausted_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(kwargs["input_values"]))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    model.forward = exhausted_once
    trainer(model, tmp_path, auto_find_batch_size=True, remove_unused_columns=False).train()
    assert calls[:2] == [2, 1]
    assert moved(before, model) == of_part(model, "head") | of_part(model, "encoder") - {"hubert.masked_spec_embed"}


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, saving = hubert(), hubert()
    trainer(plain, tmp_path).train()
    trainer(saving, tmp_path, gradient_checkpointing=True).train()
    assert moved(snapshot(plain), saving) == set()


# wrong use
def test_a_scheduler_that_cannot_be_replaced_is_an_error(tmp_path: Path) -> None:
    model = hubert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    with pytest.raises(UsageError, match=r"StepLR.*leave lr_scheduler_type at its default"):
        trainer(model, tmp_path, optimizers=(optimizer, scheduler)).train()


def test_an_optimizer_of_the_head_alone_is_an_error(tmp_path: Path) -> None:
    model = hubert()
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="the optimizer lacks"):
        trainer(model, tmp_path, optimizers=(optimizer, None)).train()


def test_an_encoder_frozen_before_the_optimizer_was_made_is_an_error(tmp_path: Path) -> None:
    model = hubert()
    model.freeze_base_model()
    with pytest.raises(UsageError, match="leave the freezing to"):
        trainer(model, tmp_path).train()


def test_a_bare_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no head"):
        trainer(build("Hubert"), tmp_path).train()


def test_distributed_settings_that_would_hang_are_an_error() -> None:
    from types import SimpleNamespace

    from speechft_merge.stage1.trainer import _require_plain_parallelism

    def arguments(**settings: Any) -> Any:
        usual = {"deepspeed": None, "fsdp": [], "ddp_find_unused_parameters": None, "gradient_checkpointing": False}
        return SimpleNamespace(**(usual | {"parallel_mode": SimpleNamespace(value="distributed")} | settings))

    _require_plain_parallelism(arguments())
    _require_plain_parallelism(arguments(gradient_checkpointing=True, ddp_find_unused_parameters=True))
    for settings in ({"ddp_find_unused_parameters": False}, {"gradient_checkpointing": True}):
        with pytest.raises(UsageError, match="set ddp_find_unused_parameters=True"):
            _require_plain_parallelism(arguments(**settings))
    for settings in ({"deepspeed": "zero.json"}, {"fsdp": ["full_shard"]}):
        with pytest.raises(UsageError, match="DeepSpeed and FSDP"):
            _require_plain_parallelism(arguments(**settings))
