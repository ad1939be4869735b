"""The experiment on Speech-FT's claim: its probes, its bootstrap and its recipes; and its page against its results."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperModel

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the examples are no part of the package
encoders: Any = import_module("examples.sources.encoders")
finetuning: Any = import_module("examples.finetune")
measure: Any = import_module("examples.speech_ft.measure")
plan: Any = import_module("examples.speech_ft.plan")
probes: Any = import_module("examples.probes")
report: Any = import_module("examples.speech_ft.report")
results: Any = import_module("examples.speech_ft.results")
run: Any = import_module("examples.speech_ft.run")
sound: Any = import_module("examples.sources.sound")
tasks: Any = import_module("examples.speech_ft.tasks")

FOLDER = ROOT / "examples/speech_ft"


# probes
def made_up(rows: int, width: int, seed: int) -> tuple[Any, Any]:
    """Features, (rows, width), in which five classes overlap, and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, size=rows)
    features = generator.standard_normal((rows, width)) * 3 + 1
    features[:, :5] += np.eye(5)[labels] * 5
    return features, labels


def test_the_ridge_probe_is_ridge_regression_with_the_strength_that_does_best_held_out() -> None:
    x, y = made_up(240, 30, 0)
    asked, _ = made_up(100, 30, 1)
    held = np.arange(240) % 4 == 0
    mean, scale = x.mean(axis=0), x.std(axis=0, ddof=1)
    x_scaled, asked_scaled = (x - mean) / scale, (asked - mean) / scale
    targets = np.eye(5)[y] - np.eye(5)[y].mean(axis=0)

    def predicted(fit: Any, strength: float, to: Any) -> Any:
        padded = np.vstack([x_scaled[fit], np.sqrt(strength * fit.sum()) * np.eye(30)])  # ridge as least squares
        weights = np.linalg.lstsq(padded, np.vstack([targets[fit], np.zeros((30, 5))]), rcond=None)[0]
        return (to @ weights + np.eye(5)[y].mean(axis=0)).argmax(axis=1)

    hits = {s: (predicted(~held, s, x_scaled[held]) == y[held]).sum() for s in probes.STRENGTHS}
    best = max(hits, key=lambda strength: hits[strength])
    expected = predicted(np.ones(240, bool), best, asked_scaled)
    x, y, held, asked = map(torch.from_numpy, (x, y, held, asked))
    assert probes.ridge(x.float(), y, held, asked.float()).tolist() == expected.tolist()


def test_a_weighted_sum_finds_the_layer_that_knows() -> None:
    (fit, labels), (asked, expected) = made_up(400, 20, 0), made_up(200, 20, 1)
    generator = np.random.default_rng(2)

    def layered(features: Any) -> torch.Tensor:
        noise = generator.standard_normal((len(features), 3, 20))
        noise[:, 1] = features
        return torch.from_numpy(noise).float()

    held_out = torch.arange(400) % 4 == 0
    answers = probes.weighted_sum(layered(fit), torch.from_numpy(labels), held_out, layered(asked))
    assert answers.shape == (probes.SEEDS, 200)
    nearest = (((asked[:, None, :5] - 1) - 5 * np.eye(5)) ** 2).sum(axis=2).argmin(axis=1)  # the best there can be
    bound = (nearest == expected).mean()
    right = answers.numpy() == expected
    assert bound - 0.12 < right.mean() <= bound + 0.05


def test_the_rows_held_out_teach_a_weighted_sum_nothing() -> None:
    fit, labels = made_up(400, 20, 0)
    held_out = torch.arange(400) % 4 == 0
    features = torch.from_numpy(fit).float()[:, None].repeat(1, 2, 1)
    truth = torch.from_numpy(labels)
    others = torch.where(held_out, (truth + 1) % 5, truth)
    answers = [probes.weighted_sum(features, each, held_out, features[held_out]) for each in (truth, others)]
    right = [each.eq(truth[held_out]).float().mean() for each in answers]
    assert min(right) > 0.5


# counts
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=300))
def test_counts_survive_being_packed(values: list[int]) -> None:
    counts = np.array(values, np.int64)
    assert measure.unpack(measure.pack(counts)).tolist() == values


def test_right_answers_are_counted_by_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(60, 4, 3, 8, generator=generator)
    labels = torch.randint(-1, 3, (60, 4), generator=generator)
    units, tested = torch.arange(60) // 3, torch.arange(60) // 3 % 2 == 1
    sounds = tasks.Sounds(torch.zeros(60, 1), {"phones": labels}, units, tested)
    found = measure.probed(states, labels, sounds)
    asked = np.array([int((labels[units == unit] >= 0).sum()) for unit in units[tested].unique()])
    assert {name: len(counts) for name, counts in found.items()} == dict.fromkeys(measure.PROBES, 10)
    for name, answers in measure.PROBES.items():
        assert (found[name] <= answers * asked).all()
    known = states.flatten(0, 1)[labels.flatten() >= 0], labels.flatten()[labels.flatten() >= 0]
    test = tested.repeat_interleave(4)[labels.flatten() >= 0]
    held = units.repeat_interleave(4)[labels.flatten() >= 0][~test] // 2 % 4 == 0
    answers = probes.ridge(known[0][~test][:, -1], known[1][~test], held, known[0][test][:, -1])
    assert found["last"].sum() == answers.eq(known[1][test]).sum()


# bootstrap
def test_with_one_seed_the_interval_is_that_of_a_mean_over_units() -> None:
    generator = np.random.default_rng(0)
    differences = generator.integers(-1, 2, size=(1, 900)).astype(float)
    found = results.paired(differences, np.ones(900, np.int64))
    error = differences.std() / 30
    assert found.value == pytest.approx(differences.mean())
    assert [found.low, found.high] == pytest.approx(
        [differences.mean() - 1.96 * error, differences.mean() + 1.96 * error], abs=0.2 * error
    )


def test_units_count_by_their_questions() -> None:
    found = results.paired(np.array([[3.0, 0.0], [1.0, 2.0]]), np.array([3, 1]))
    assert found.value == pytest.approx((3 + 0 + 1 + 2) / 2 / 4)


@pytest.mark.parametrize(("of_seeds", "of_units"), [(0.0, 1.0), (0.05, 1.0), (0.1, 1.0)])
def test_intervals_of_five_seeds_hold_the_truth_as_often_as_they_say(of_seeds: float, of_units: float) -> None:
    """Clips that are easy or hard for all seeds, seeds that are good or bad for all clips, and what is left."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        seeds = generator.standard_normal((5, 1)) * of_seeds
        units = generator.standard_normal((1, 200)) * of_units
        found = results.paired(seeds + units + generator.standard_normal((5, 200)), np.ones(200, np.int64))
        held += found.low <= 0 <= found.high
    assert 0.9 <= held / 300 <= 0.99


def record(recipe: str, seed: int, alpha: float, right: list[int], steps: int | None = None) -> dict[str, Any]:
    counts = {f"{task}/{probe}": np.array(right) * n for task in report.TASKS for probe, n in measure.PROBES.items()}
    made = {"model": plan.TINY, "pair": "A", "recipe": recipe, "seed": seed, "steps": steps, "alpha": alpha}
    made["right"] = {name: measure.pack(each) for name, each in counts.items()}
    if recipe == plan.BASE:
        made["questions"] = {task: measure.pack(np.full(4, 10)) for task in report.TASKS}
    return made


@pytest.fixture
def three_seeds() -> Any:
    base = record(plan.BASE, 0, 0.0, [5, 5, 5, 5])
    others = [record("hot", seed, 1.0, [4, 3, 4, 3]) for seed in range(3)]
    return results.Results([base, *others, *(record("hot", seed, 0.25, [6, 7, 6, 6]) for seed in range(2))])


def test_differences_are_taken_seed_by_seed_and_from_one_base(three_seeds: Any) -> None:
    tuned, merged = (results.State(report.A, None, alpha) for alpha in (1.0, 0.25))
    assert three_seeds.accuracy(merged, "speaker/ws") == pytest.approx(25 / 40)
    lost = three_seeds.difference(tuned, results.base_of(report.A), "speaker/ws")
    won = three_seeds.difference(merged, tuned, "speaker/ws")
    assert (lost.value, lost.seeds, won.value, won.seeds) == (pytest.approx(-6 / 40), 3, pytest.approx(11 / 40), 2)
    assert won.low > 0 > lost.high


def test_only_a_claim_that_is_asserted_can_fail_a_report(three_seeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    above, below = (report.Claim(report.A, "phones/ridge", (None, 0.25), (None, 1.0), sign) for sign in (1, -1))

    def told(claim: Any) -> tuple[bool, str]:
        good, (line,) = report.claims(three_seeds, [claim])
        return good, line.partition(":")[0]

    assert [told(above), told(below)] == [(True, "holds"), (False, "FAILS")]
    monkeypatch.setattr(report, "NOT_ASSERTED", {below})
    assert told(below) == (True, "not shown")


# sounds
def test_a_telephone_passes_its_band_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(2, 8000, generator=generator)
    spectrum = torch.fft.rfft(sound.telephone(waves).double()).abs()
    hertz = torch.fft.rfftfreq(8000, 1 / 16000)
    inside = (hertz >= 300) & (hertz <= 3400)
    assert spectrum[:, ~inside].max() < 1e-3 * spectrum[:, inside].mean()
    assert sound.telephone(waves).square().mean(dim=1).sqrt() == pytest.approx([0.1, 0.1], rel=1e-3)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_the_coding_keeps_a_wave_within_a_step(values: list[float]) -> None:
    wave = torch.tensor(values)
    squeezed = [torch.log1p(255 * each.abs()) / np.log(256) for each in (wave, sound.coded(wave))]
    assert (squeezed[0] - squeezed[1]).abs().max() <= 0.5 / 127 + 1e-5
    assert (sound.coded(wave) * wave >= 0).all()


def test_noise_is_as_loud_as_is_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(50, 8000, generator=generator)
    clean = sound.levelled(waves)
    noise = sound.noisy(waves, (0.0, 5.0), np.random.default_rng(0)) - clean
    decibels = -20 * torch.log10(noise.square().mean(dim=1).sqrt())
    assert 0 - 1e-3 < decibels.min() < 1
    assert 4 < decibels.max() < 5 + 1e-3


# recipes
@pytest.fixture(scope="module")
def small() -> Any:
    """A Whisper encoder of two blocks, not trained."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64, encoder_layers=3, encoder_attention_heads=1, encoder_ffn_dim=64, max_source_positions=50,
        decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, vocab_size=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    state = WhisperModel(config).encoder.state_dict()
    return encoders.Base("small", config.to_dict(), state, encoders.whisper_hearing(config.num_mel_bins))


class Lessons:
    """Loud and soft noise."""

    classes = 2
    window = 8000

    def batch(self, rows: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        labels = generator.integers(0, 2, size=rows)
        waves = generator.standard_normal((rows, self.window)) * (0.02 + 0.2 * labels[:, None])
        return torch.from_numpy(waves).float(), torch.from_numpy(labels)


def moved(base: Any, state: Any) -> set[str]:
    """The tensors that are not the base's."""
    before = base.cut(base.state, Lessons.window)
    return {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}


def distance(base: Any, state: Any) -> float:
    before = base.cut(base.state, Lessons.window)
    return float(sum((tensor - before[name]).square().sum() for name, tensor in state.items()))


def learnt(base: Any, **settings: Any) -> dict[int, Any]:
    recipe = finetuning.Recipe(**{"rate": 1e-3, "steps": 20, "rows": 4} | settings)
    states: dict[int, Any] = finetuning.finetune(base, Lessons(), recipe, seed=0)[0]
    return states


def test_a_recipe_for_the_top_leaves_the_rest_as_it_was(small: Any) -> None:
    names = moved(small, learnt(small, top=1)[20])
    assert names
    assert all(name.startswith(("layers.2.", "layer_norm.")) for name in names)


def test_stage_1_leaves_the_convolutions_as_they_were(small: Any) -> None:
    names = moved(small, learnt(small, stage1=True)[20])
    assert not any(name.startswith("conv") for name in names)
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0", "1", "2"}


def test_a_pull_holds_a_fine_tune_near_its_base(small: Any) -> None:
    near, far = (distance(small, learnt(small, pull=pull)[20]) for pull in (200.0, 0.0))
    assert 0 < near < far / 2


def test_what_is_kept_on_the_way_is_the_run_at_that_step(small: Any) -> None:
    states = learnt(small, keep=(5, 10))
    assert list(states) == [5, 10, 20]
    far = [distance(small, state) for state in states.values()]
    assert far == sorted(far)
    assert len({id(state) for state in states.values()}) == 3


# runs
def test_two_runs_do_not_do_the_same_job(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "job") as first, run.claimed(tmp_path / "job") as second:
        assert (first, second) == (True, False)
    with run.claimed(tmp_path / "job") as again:
        assert again


def test_every_job_of_the_plan_has_a_recipe_that_keeps_what_is_measured() -> None:
    for job in [*plan.FULL, *plan.QUICK]:
        kept = () if job.recipe == plan.BASE else job.how.keep
        assert {steps for steps, _ in job.points} - {None} <= set(kept)


# the page
@pytest.mark.parametrize("name", ["results", "quick"])
def test_the_page_shows_what_the_report_makes_of_the_results(name: str) -> None:
    page = (FOLDER / "README.md").read_text()
    records = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    found = results.Results(records)
    for table in report.tables(found).values():
        assert table in page
    good, told = report.claims(found, report.measured(found))
    assert good
    if name == "results":
        assert all(f"* {line}" in page for line in told)


def test_the_committed_accuracies_are_those_of_the_committed_answers() -> None:
    records = [json.loads(line) for line in (FOLDER / "results.jsonl").read_text().splitlines()]
    found = results.Results(records)
    for each in records:
        state = results.State(results.Run(each["model"], each["pair"], each["recipe"]), each["steps"], each["alpha"])
        if found.seeds(state) == [each["seed"]]:
            assert {name: round(found.accuracy(state, name), 4) for name in each["accuracy"]} == each["accuracy"]
