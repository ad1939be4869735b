"""Stage 1: what trains when, at which learning rate, and that nothing else moves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import CLASSES, build

from speechft_merge.errors import UsageError
from speechft_merge.layouts.naming import Naming, read_naming
from speechft_merge.stage1.schedule import Schedule
from speechft_merge.stage1.stage import StableFineTuning, find_encoder, parts_of

STEPS = 20
PEAK = 0.01
TASKS = [(family, kind) for family, kinds in CLASSES.items() for kind in kinds if "For" in kind]


class Lab(torch.nn.Module):
    """An upstream with fairseq's names, as S3PRL wraps it, beside a head."""

    def __init__(self, *, cnn: bool = True, layer_norm: bool = True) -> None:
        super().__init__()
        encoder = torch.nn.Module()
        encoder.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
        encoder.layer_norm = torch.nn.LayerNorm(4)
        encoder.pos_conv = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, padding=1))
        encoder.layerdrop = 0.05
        model = torch.nn.Module()
        model.feature_grad_mult = 0.1
        if cnn:
            model.feature_extractor = torch.nn.Conv1d(1, 4, 3)
        if layer_norm:
            model.layer_norm = torch.nn.LayerNorm(4)
        model.post_extract_proj = torch.nn.Linear(4, 4)
        model.encoder = encoder
        upstream = torch.nn.Module()
        upstream.model = model
        self.upstream = upstream
        self.head = torch.nn.Linear(4, 3)


def hubert(seed: int = 0, **config: Any) -> Any:
    """A tiny model without dropout, so that two runs are alike."""
    still = dict.fromkeys(
        ["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"], 0.0
    )
    return build("Hubert", "ForSequenceClassification", seed, num_labels=3, **(still | config)).train()


def batch(step: int, rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "input_values": torch.randn(rows, 800, generator=generator),
        "labels": torch.randint(3, (rows,), generator=generator),
    }


def plain_loop(model: Any, steps: range, *, accumulate: int = 1, resume: Any = None) -> torch.optim.Optimizer:
    """The loop of the module's docstring; `resume` is the state of the optimizer after the step before."""
    stage = StableFineTuning(model, Schedule(STEPS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.1)
    if resume:
        optimizer.load_state_dict(resume)
    scheduler = stage.scheduler(optimizer, steps.start - 1)
    for step in steps:
        stage.begin(step)
        for part in range(accumulate):
            (model(**batch(step * accumulate + part)).loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return optimizer


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    """Names of the parameters of which a bit has changed."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def naming_of(model: Any) -> Naming:
    return read_naming({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})


def of_part(model: Any, part: str) -> set[str]:
    return {name for name, its in parts_of(naming_of(model), "hubert").items() if its == part}


# the schedule
@given(total=st.integers(1, 3000))
def test_the_learning_rate_is_the_official_formula_at_every_step(total: int) -> None:
    warm = int(0.1 * total)
    held = warm + int(0.4 * total)
    schedule = Schedule(total)
    for step in range(total + 2):
        if step < warm:
            expected = step / warm
        elif step < held:
            expected = 1.0
        else:
            expected = max(0.0, (total - step) / (total - held))
        assert schedule.learning_rate(step) == expected


def test_the_papers_fifty_thousand_steps() -> None:
    schedule = Schedule(50_000)
    rates = {step: schedule.learning_rate(step) for step in (0, 2500, 5000, 24_999, 25_000, 37_500, 50_000)}
    assert rates == {0: 0.0, 2500: 0.5, 5000: 1.0, 24_999: 1.0, 25_000: 1.0, 37_500: 0.5, 50_000: 0.0}
    assert [schedule.trains("encoder", step) for step in (0, 4999, 5000, 49_999)] == [False, False, True, True]


@given(total=st.integers(10, 100_000))
def test_the_encoder_thaws_when_the_learning_rate_has_reached_its_peak(total: int) -> None:
    schedule = Schedule(total)
    thaw = schedule.head_only_steps
    assert schedule.trains("encoder", thaw)
    assert not schedule.trains("encoder", thaw - 1)
    assert schedule.learning_rate(thaw - 1) < schedule.learning_rate(thaw) == 1.0
    assert not any(schedule.trains("cnn", step) for step in (0, thaw, total - 1))
    assert all(schedule.trains("head", step) for step in (0, thaw, total - 1))


@pytest.mark.parametrize("total", [0, -1, True, 10.0, None, float("inf")])
def test_an_unknown_number_of_steps_is_an_error(total: Any) -> None:
    with pytest.raises(UsageError, match="give the number of all optimizer steps"):
        Schedule(total)


@pytest.mark.parametrize("shares", [{"head_only": 1.1}, {"warmup": -0.1}, {"warmup": 0.7, "hold": 0.4}])
def test_shares_that_do_not_fit_are_an_error(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="shares of all steps"):
        Schedule(100, **shares)


@given(total=st.integers(1, 3000))
def test_counted_from_1_the_encoder_is_frozen_when_the_official_experts_would_freeze_it(total: int) -> None:
    """S3PRL's runner calls the first step 1; the experts freeze while that number is below a tenth of all steps."""
    schedule = Schedule(total, first_step=1)
    for step in range(total):
        global_step, finetune_step = step + 1, int(total * 0.1)
        assert schedule.trains("encoder", step) == (global_step >= finetune_step)
        assert schedule.learning_rate(step) == Schedule(total).learning_rate(step)


def test_the_papers_run_has_one_head_only_step_less_if_counted_from_1() -> None:
    assert [Schedule(50_000, first_step=first).head_only_steps for first in (0, 1)] == [5000, 4999]


@pytest.mark.parametrize("first", [-1, 2, None])
def test_steps_are_counted_from_0_or_1(first: Any) -> None:
    with pytest.raises(UsageError, match="count from 0, or from 1 as S3PRL's runner"):
        Schedule(100, first_step=first)


# the parts, in every family
@pytest.mark.parametrize(("family", "kind"), TASKS)
def test_the_encoder_is_what_the_bare_class_has(family: str, kind: str) -> None:
    model = build(family, kind)
    stage = StableFineTuning(model, Schedule(STEPS))
    bare = {name for name, _ in build(family).named_parameters()}
    prefix = "" if kind == "ForAudioClassification" else f"{model.base_model_prefix}."
    for name, part in stage.parts.items():
        inside = name.removeprefix(prefix) in bare and (name.startswith(prefix) or not prefix)
        assert (part == "head") == (not inside or "decoder" in name), name
        cnn = "feature_extractor.conv_layers" in name or name.endswith(
            ("encoder.conv1.weight", "encoder.conv1.bias", "encoder.conv2.weight", "encoder.conv2.bias")
        )
        assert (part == "cnn") == cnn, name
    assert ("cnn" in stage.parts.values()) == (family != "Wav2Vec2Bert")


def test_a_lab_model_is_known_by_its_names() -> None:
    model = Lab()
    stage = StableFineTuning(model, Schedule(STEPS))
    assert stage.encoder == "upstream.model"
    assert {name for name, part in stage.parts.items() if part == "head"} == {"head.weight", "head.bias"}
    assert {name for name, part in stage.parts.items() if part == "cnn"} == {
        "upstream.model.feature_extractor.weight",
        "upstream.model.feature_extractor.bias",
    }
    upstream: Any = model.upstream
    assert upstream.model.feature_grad_mult == 0.0
    assert upstream.model.encoder.layerdrop == 0.0


def test_decoar_2_has_no_cnn_and_its_projection_belongs_to_the_encoder() -> None:
    stage = StableFineTuning(Lab(cnn=False, layer_norm=False), Schedule(STEPS))
    assert stage.parts["upstream.model.post_extract_proj.weight"] == "encoder"
    assert "cnn" not in stage.parts.values()


def test_a_head_of_torchaudio_stands_among_the_names_of_the_encoder() -> None:
    names = [
        *(f"feature_extractor.conv_layers.{layer}.conv.weight" for layer in range(7)),
        "encoder.feature_projection.projection.weight",
        "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.transformer.layer_norm.weight",
        *(f"encoder.transformer.layers.{layer}.attention.k_proj.weight" for layer in range(12)),
        "aux.weight",
    ]
    naming = read_naming(dict.fromkeys(names, (4, 4)))
    parts = parts_of(naming, find_encoder(naming))
    assert [name for name, part in parts.items() if part == "head"] == ["aux.weight"]
    assert [name for name, part in parts.items() if part == "cnn"] == names[:7]


def test_what_stands_beside_an_encoder_is_a_head_whatever_its_name() -> None:
    model = torch.nn.ModuleDict({"encoder": build("Whisper").encoder, "mlp": torch.nn.Linear(32, 3)})
    stage = StableFineTuning(model, Schedule(STEPS))
    assert stage.encoder == "encoder"
    assert {name for name, part in stage.parts.items() if part == "head"} == {"mlp.weight", "mlp.bias"}


@pytest.mark.parametrize(
    ("stack", "encoder"),
    [("model.encoder.encoder.layer", "model"), ("encoder.encoders", "encoder"), ("net.blocks", "net")],
)
def test_blocks_are_found_in_lists_of_other_names(stack: str, encoder: str) -> None:
    names = [f"{stack}.{block}.{name}.weight" for block in range(2) for name in ("attention", "fc")]
    first = "model.feature_extractor.conv_layers.0.conv.weight"
    names += [first, "ctc.proj.weight"] if encoder == "model" else ["ctc.proj.weight"]
    naming = read_naming(dict.fromkeys(names, (4, 4)))
    assert find_encoder(naming) == encoder
    parts = parts_of(naming, encoder)
    assert [name for name, part in parts.items() if part == "head"] == ["ctc.proj.weight"]
    assert {part for name, part in parts.items() if name.startswith(stack)} == {"encoder"}
    assert parts.get(first, "cnn") == "cnn"


def test_an_encoder_may_be_a_numbered_member_of_its_model() -> None:
    assert find_encoder(naming_of(torch.nn.Sequential(build("Hubert"), torch.nn.Linear(32, 3)))) == "0"


def test_a_wrapper_of_data_parallel_changes_nothing() -> None:
    assert find_encoder(naming_of(torch.nn.ModuleDict({"module": hubert()}))) == "module.hubert"


def test_random_layers_and_masks_are_turned_off() -> None:
    model = hubert(layerdrop=0.5)
    StableFineTuning(model, Schedule(STEPS))
    assert model.config.layerdrop == 0.0
    assert model.config.apply_spec_augment is False
    torch.manual_seed(0)
    first = model(**batch(0)).logits
    assert torch.equal(first, model(**batch(0)).logits)


def test_whispers_decoder_keeps_its_layer_drop_and_its_positions_stay_frozen() -> None:
    model = build("Whisper", "ForConditionalGeneration", encoder_layerdrop=0.5, decoder_layerdrop=0.25).train()
    stage = StableFineTuning(model, Schedule(STEPS))
    assert (model.model.encoder.layerdrop, model.model.decoder.layerdrop) == (0.0, 0.25)
    assert model.config.encoder_layerdrop == 0.0
    stage.begin(STEPS - 1)
    assert not model.model.encoder.embed_positions.weight.requires_grad


@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2", "WavLM", "Data2VecAudio"])
def test_no_graph_is_built_through_the_cnn(family: str) -> None:
    model = build(family, "ForSequenceClassification").train()
    stage = StableFineTuning(model, Schedule(STEPS))
    stage.begin(STEPS - 1)
    features = getattr(model, model.base_model_prefix).feature_extractor(batch(0)["input_values"])
    assert not features.requires_grad


# training
def test_at_first_the_head_alone_moves() -> None:
    model = hubert()
    before = snapshot(model)
    plain_loop(model, range(Schedule(STEPS).head_only_steps))
    assert moved(before, model) == of_part(model, "head")


def test_in_the_end_everything_has_moved_but_the_cnn() -> None:
    model = hubert()
    before = snapshot(model)
    plain_loop(model, range(STEPS))
    unused = {"hubert.masked_spec_embed"}  # SpecAugment is off
    changed = moved(before, model)
    assert changed == of_part(model, "head") | of_part(model, "encoder") - unused
    assert of_part(model, "cnn")
    norms = {name for name in before if "layer_norm" in name and "feature_extractor" not in name}
    assert {"hubert.feature_projection.projection.weight", "hubert.encoder.pos_conv_embed.conv.bias"} | norms <= changed


@pytest.mark.parametrize("stop", [1, 7, 15])
def test_a_loop_resumed_in_the_middle_equals_an_uninterrupted_one(stop: int) -> None:
    whole, first, second = hubert(), hubert(), hubert(seed=1)
    plain_loop(whole, range(STEPS))
    optimizer = plain_loop(first, range(stop))
    second.load_state_dict(first.state_dict())
    plain_loop(second, range(stop, STEPS), resume=optimizer.state_dict())
    assert moved(snapshot(whole), second) == set()


def test_gradients_of_zeros_do_not_let_weight_decay_move_what_is_frozen() -> None:
    model = hubert()
    before = snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stage = StableFineTuning(model, Schedule(STEPS))
    stage.begin(0)
    model(**batch(0)).loss.backward()
    optimizer.step()
    assert moved(before, model) == of_part(model, "head")


def test_afterwards_everything_may_train_again_that_did_before() -> None:
    model = hubert()
    model.freeze_feature_encoder()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    stage = StableFineTuning(model, Schedule(STEPS))
    stage.begin(STEPS - 1)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen | of_part(model, "cnn")
    stage.end()
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen


# wrong use
def test_no_cnn_where_there_should_be_one_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"no convolutional feature extractor.*'upstream.model' of Lab.*cnn='none'"):
        StableFineTuning(Lab(cnn=False), Schedule(STEPS))
    StableFineTuning(Lab(cnn=False), Schedule(STEPS), cnn="none")


def test_a_cnn_where_there_should_be_none_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"cnn='none', but 'hubert' of .* has convolutions"):
        StableFineTuning(hubert(), Schedule(STEPS), cnn="none")


@pytest.mark.parametrize("cnn", [True, False, "freze"])
def test_an_unknown_fate_of_the_cnn_is_an_error(cnn: Any) -> None:
    with pytest.raises(UsageError, match="use one of freeze, train, none"):
        StableFineTuning(hubert(), Schedule(STEPS), cnn=cnn)


def test_a_model_without_transformer_layers_is_an_error() -> None:
    with pytest.raises(UsageError, match="no transformer layers were found in Linear"):
        StableFineTuning(torch.nn.Linear(2, 2), Schedule(STEPS))


@pytest.mark.parametrize(
    ("name", "message"), [("hubrt", "has no submodule 'hubrt'"), ("classifier", "has no transform")]
)
def test_a_wrong_name_of_the_encoder_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StableFineTuning(hubert(), Schedule(STEPS), encoder=name)


@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2", "WavLM", "Data2VecAudio", "Wav2Vec2Bert"])
def test_a_bare_encoder_has_nothing_to_train_at_first(family: str) -> None:
    with pytest.raises(UsageError, match=r"Model has no head .* the first 2 steps.* torch.nn.ModuleDict.* head_only=0"):
        StableFineTuning(build(family), Schedule(STEPS))
    StableFineTuning(build(family), Schedule(STEPS, head_only=0))


@pytest.mark.parametrize("dead", ["final_proj", "label_embs_concat", "quantizer.vars", "project_q"])
def test_heads_of_pre_training_within_an_upstream_are_none_of_its_task(dead: str) -> None:
    """fairseq's classes have them among the encoder's names, and S3PRL's copies of these."""
    upstream: Any = Lab().upstream
    name, _, inner = dead.partition(".")
    setattr(upstream.model, name, torch.nn.ParameterDict({inner: torch.ones(4)}) if inner else torch.nn.Linear(4, 4))
    with pytest.raises(UsageError, match="Module has no head"):
        StableFineTuning(upstream, Schedule(STEPS))
    both = torch.nn.ModuleDict({"upstream": upstream, "downstream": torch.nn.Linear(4, 3)})
    stage = StableFineTuning(both, Schedule(STEPS))
    assert {n for n, part in stage.parts.items() if part == "head"} == {"downstream.weight", "downstream.bias"}
    stage.begin(0)
    assert {n for n, p in both.named_parameters() if p.requires_grad} == {"downstream.weight", "downstream.bias"}


def test_an_encoder_frozen_beforehand_is_an_error() -> None:
    model = hubert()
    model.freeze_base_model()
    with pytest.raises(UsageError, match=r"(\d+) of \1 tensors of the encoder .* are frozen beforehand"):
        StableFineTuning(model, Schedule(STEPS))


def test_one_frozen_layer_is_an_error() -> None:
    model = hubert()
    model.hubert.encoder.layers[0].requires_grad_(False)
    with pytest.raises(UsageError, match=r"16 of 42 tensors .* frozen beforehand .* such as hubert.encoder.layers.0"):
        StableFineTuning(model, Schedule(STEPS))


def test_a_frozen_head_is_an_error() -> None:
    model = hubert()
    for head in (model.projector, model.classifier):
        head.requires_grad_(False)
    with pytest.raises(UsageError, match=r"the head of .* is frozen \(projector.weight\)"):
        StableFineTuning(model, Schedule(STEPS))


# the ablation: the CNN trains, too
def test_the_cnn_can_train_when_the_encoder_does() -> None:
    model = hubert()
    before, cnn = snapshot(model), of_part(model, "cnn")
    stage = StableFineTuning(model, Schedule(STEPS), cnn="train")
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK)
    for step in range(4):
        stage.begin(step)
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert (moved(before, model) & cnn == set()) == (step < 2)
    assert moved(before, model) >= cnn


def test_a_cnn_that_is_to_train_must_not_be_frozen() -> None:
    model = hubert()
    model.freeze_feature_encoder()
    with pytest.raises(UsageError, match=r"frozen beforehand.*feature_extractor"):
        StableFineTuning(model, Schedule(STEPS), cnn="train")


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (0.1, 0.1)])
def test_a_cnn_that_is_to_train_gets_a_gradient_in_fairseqs_models(before: float, after: float) -> None:
    model: Any = Lab()
    model.upstream.model.feature_grad_mult = before
    StableFineTuning(model, Schedule(STEPS), cnn="train")
    assert model.upstream.model.feature_grad_mult == after


# what is said
@pytest.mark.parametrize(("total", "first", "said"), [(9, 0, True), (10, 0, False), (19, 1, True), (20, 1, False)])
def test_too_few_steps_for_a_head_only_phase_are_said(
    total: int, first: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    StableFineTuning(hubert(), Schedule(total, first_step=first))
    assert ("too few for a head-only phase" in caplog.text) == said
    caplog.clear()
    StableFineTuning(hubert(), Schedule(total, head_only=0))
    assert caplog.text == ""


def test_an_optimizer_without_the_encoder_is_an_error() -> None:
    model = hubert()
    stage = StableFineTuning(model, Schedule(STEPS))
    stage.begin(0)
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with pytest.raises(UsageError, match=r"the optimizer lacks \d+ parameters .* such as hubert\."):
        stage.scheduler(torch.optim.SGD(training, lr=0.1))
    without_cnn = [p for n, p in model.named_parameters() if stage.parts[n] != "cnn"]
    stage.scheduler(torch.optim.SGD(without_cnn, lr=0.1))


@pytest.mark.parametrize("step", [-1, STEPS])
def test_a_step_outside_of_the_schedule_is_an_error(step: int) -> None:
    with pytest.raises(UsageError, match=f"step {step} is outside the {STEPS} steps"):
        StableFineTuning(hubert(), Schedule(STEPS)).begin(step)


def test_the_schedule_can_be_had_without_torch() -> None:
    code = "import sys; from speechft_merge.stage1.stage import Schedule; Schedule(100); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
