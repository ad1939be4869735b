"""Models of transformers compared on real speech, against plain code over transformers' own hidden states."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lab_files
import lab_models
import numpy as np
import oracles
import pytest
import soundfile
import torch
from lab_models import LABS, build_lab, shaken
from models import model_class, transformers
from options import UNSYNCED

from speechft_merge import ProbeRequest, Recipe, compare, merge, open_merge
from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.checkpoints.model_config import ModelConfig, read_model_config
from speechft_merge.errors import CheckpointError, MismatchError, SpeechFTMergeError, UsageError
from speechft_merge.output.formats import decide_form
from speechft_merge.plan.plan import make_plan
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.similarity.comparison import compare_models
from speechft_merge.similarity.models import ComparedModels
from speechft_merge.similarity.probe import BUILT_IN

if TYPE_CHECKING:
    from conftest import SavePair, WriteAudio
    from numpy.typing import NDArray

    from speechft_merge import Report
    from speechft_merge.checkpoints import Checkpoint
    from speechft_merge.progress import Step

FAMILIES = [
    ("Hubert", "ForCTC"),
    ("Hubert", "ForSequenceClassification"),
    ("Wav2Vec2", "ForPreTraining"),
    ("WavLM", "ForXVector"),
    ("Data2VecAudio", "ForCTC"),
]
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
"""The Large models' kind of CNN, with norms before the blocks."""


def normalised(clip: Path) -> torch.Tensor:
    samples = torch.from_numpy(soundfile.read(clip, dtype="float32")[0])
    return (samples - samples.mean()) / torch.sqrt(samples.var(correction=0) + 1e-7)


def features_by_transformers(
    path: str, family: str, kind: str, clips: tuple[Path, ...]
) -> list[list[NDArray[np.float64]]]:
    """Layer by layer, utterance by utterance: the class's own encoder on one normalised clip at a time."""
    encoder = model_class(family, kind).from_pretrained(path).base_model.eval()
    layers: list[list[NDArray[np.float64]]] = []
    for clip in clips:
        with torch.no_grad():
            out = encoder(normalised(clip)[None], output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        layers = layers or [[] for _ in states]
        for layer, state in zip(layers, states, strict=True):
            layer.append(state[0].double().numpy())
    return layers


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_figures_are_those_of_transformers_own_hidden_states(
    family: str, kind: str, save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    base, finetuned = save_pair(family, kind)
    report = compare(base, finetuned, request=ProbeRequest(paths=few_clips))
    ours = features_by_transformers(base, family, "Model", few_clips)
    theirs = features_by_transformers(finetuned, family, kind, few_clips)
    assert len(report.layers) == len(ours) == 3
    assert report.frames == sum(map(len, ours[0]))
    for layer, xs, ys in zip(report.layers, ours, theirs, strict=True):
        found = layer.pairs["base_finetuned"]
        x, y = np.concatenate(xs), np.concatenate(ys)
        assert found.biased == pytest.approx(oracles.ratio(oracles.hsic_biased, x, y), abs=1e-4)
        assert found.frame == pytest.approx(oracles.ratio(oracles.hsic_song, x, y), abs=1e-4)
        assert found.cka == pytest.approx(oracles.ratio(oracles.hsic_of_groups, xs, ys), abs=1e-4)
        cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        lengths = np.cumsum([len(one) for one in xs])[:-1]
        assert found.cosine == pytest.approx(np.mean([part.mean() for part in np.split(cosines, lengths)]), abs=1e-4)


@pytest.mark.parametrize("kind", ["HuBERT", "wav2vec 2.0 with layer norm", "WavLM"])
def test_a_labs_files_are_run_as_the_labs_own_module_runs_them(
    kind: str, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    """S3PRL's base and fine-tune, without a config.json between them."""
    lab = LABS[kind]
    base = build_lab(lab)
    finetuned = build_lab(lab)
    finetuned.load_state_dict(shaken(base.state_dict()))
    torch.save(lab_files.s3prl_base(lab, base.state_dict()), tmp_path / "base.pt")
    torch.save(lab_files.s3prl_finetune(lab, finetuned.state_dict()), tmp_path / "dev-best.ckpt")
    report = compare(str(tmp_path / "base.pt"), str(tmp_path / "dev-best.ckpt"), request=ProbeRequest(paths=few_clips))
    assert all("group" in warning for warning in report.warnings), "the fine-tune's settings are the base's"
    assert_features_of_the_lab(report, lab, (base, finetuned), [normalised(clip) for clip in few_clips])


def assert_features_of_the_lab(
    report: Report, lab: lab_models.Lab, models: tuple[Any, Any], clips: list[torch.Tensor]
) -> None:
    """The figures are those of the hidden states that the lab's own module gives of each clip."""
    with torch.no_grad():
        both = [[[state[0].double().numpy() for state in model(clip[None])] for clip in clips] for model in models]
    layers = [layer for layer in report.layers if layer.key.block != lab.layers - 1 or not lab.large]
    assert len(layers) == lab.layers + 1  # with a norm after the blocks, the lab's module has no state before it
    for number, layer in enumerate(layers):
        x, y = (np.concatenate([clip[number] for clip in found]) for found in both)
        assert layer.pairs["base_finetuned"].biased == pytest.approx(oracles.cka_biased(x, y), abs=1e-4)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_of_a_usual_width_the_shapes_alone_tell_all_settings(
    family: str, large: bool, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    """Two S3PRL fine-tunes, which hold no settings: such as one merge of Speech-FT after the other has."""
    kernels = ((16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2)
    sizes = {"layers": 1, "width": 768, "heads": 12, "conv_pos_groups": 16, "buckets": 320, "distance": 800}
    lab = lab_models.Lab(family, conv=kernels, large=large, conv_bias=large, **sizes)
    base, finetuned = build_lab(lab), build_lab(lab)
    finetuned.load_state_dict(shaken(base.state_dict()))
    for name, model in (("first.ckpt", base), ("second.ckpt", finetuned)):
        torch.save(lab_files.s3prl_finetune(lab, model.state_dict()), tmp_path / name)
    files = str(tmp_path / "first.ckpt"), str(tmp_path / "second.ckpt")
    report = compare(*files, request=ProbeRequest(paths=few_clips[:4]))
    raw = [torch.from_numpy(soundfile.read(clip, dtype="float32")[0]) for clip in few_clips[:4]]
    clips = [normalised(clip) for clip in few_clips[:4]] if large else raw
    assert_features_of_the_lab(report, lab, (base, finetuned), clips)


@pytest.mark.parametrize(
    ("family", "kind", "base_kind"),
    [
        ("Whisper", "ForAudioClassification", "Model"),
        ("Whisper", "ForConditionalGeneration", "ForConditionalGeneration"),
        ("Wav2Vec2Bert", "ForCTC", "Model"),
        ("Wav2Vec2", "ForCTC", "ForPreTraining"),
    ],
)
def test_encoders_of_any_class_are_run(
    family: str, kind: str, base_kind: str, save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    report = compare(*save_pair(family, kind, base_kind), request=ProbeRequest(paths=few_clips))
    norm = ["final_norm"] if family == "Whisper" else []
    assert [layer.key.label for layer in report.layers] == ["input", "0", "1", *norm]
    for layer in report.layers:
        assert layer.pairs["base_finetuned"].cka < layer.pairs["base_merged"].cka <= 1.0001


def test_batches_of_large_models_give_what_single_clips_give(
    save_pair: SavePair, few_clips: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = save_pair("Hubert", "ForCTC", **LARGE)
    together = compare(base, finetuned, request=ProbeRequest(paths=few_clips))
    monkeypatch.setattr("speechft_merge.similarity.inputs.BATCH_SECONDS", 0.1)
    alone = compare(base, finetuned, request=ProbeRequest(paths=few_clips))
    for one, other in zip(together.layers, alone.layers, strict=True):
        for pair, found in one.pairs.items():
            assert found.cka == pytest.approx(other.pairs[pair].cka, abs=1e-4)


def test_a_clip_of_a_base_model_does_not_depend_on_its_neighbours(
    save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    """Padding would move its frames by a third: the group norm runs over time."""
    base, finetuned = save_pair("Hubert", "ForCTC")
    report = compare(base, finetuned, request=ProbeRequest(paths=few_clips))
    backwards = compare(base, finetuned, request=ProbeRequest(paths=few_clips[::-1]))
    for one, other in zip(report.layers, backwards.layers, strict=True):
        assert one.pairs["base_finetuned"].cka == pytest.approx(other.pairs["base_finetuned"].cka, abs=1e-5)


@pytest.mark.parametrize("family", ["Hubert", "Whisper"])
def test_alpha_0_reads_exactly_one_against_the_base_and_alpha_1_against_the_fine_tune(
    family: str, save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    pair = save_pair(family)
    request = ProbeRequest(paths=few_clips)
    nothing = compare(*pair, request=request, recipe=Recipe(alpha=0))
    everything = compare(*pair, request=request, recipe=Recipe(alpha=1))
    for none, all_ in zip(nothing.layers, everything.layers, strict=True):
        assert none.pairs["base_merged"].cka == 1
        assert none.pairs["base_merged"].se == 0
        assert all_.pairs["finetuned_merged"].cka == 1
        assert none.pairs["finetuned_merged"].cka == pytest.approx(none.pairs["base_finetuned"].cka, abs=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(alpha=0.4), Recipe(layer_alpha=(parse_rule("0=0.1"), parse_rule("1=0.9")))],
    ids=["alpha", "layers"],
)
def test_merged_in_memory_or_read_from_a_file_the_figures_are_the_same(
    recipe: Recipe, save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, finetuned = save_pair("Hubert", "ForCTC")
    merge(base, finetuned, tmp_path / "merged", recipe, options=UNSYNCED)
    request = ProbeRequest(paths=few_clips)
    in_memory = compare(base, finetuned, request=request, recipe=recipe)
    from_file = compare(base, finetuned, str(tmp_path / "merged"), request)
    assert in_memory.layers == from_file.layers


@pytest.mark.parametrize(
    ("family", "config", "norm_is_last"),
    [
        ("Hubert", {}, False),
        ("Hubert", LARGE, True),
        ("Wav2Vec2", LARGE, True),
        ("Whisper", {}, True),
        ("Wav2Vec2Bert", {}, False),
    ],
)
def test_the_drift_of_every_layer_from_the_first_to_the_last_is_that_of_its_weights(
    family: str, config: dict[str, Any], norm_is_last: bool, save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    """By float64 torch; of the encoder's weights each counts once, and those of adapter and decoder nowhere."""
    base, finetuned = save_pair(family, **config)
    report = compare(base, finetuned, request=ProbeRequest(paths=few_clips))
    ours, theirs = (model_class(family, "Model").from_pretrained(path).state_dict() for path in (base, finetuned))
    sums: dict[str, list[float]] = {}
    for name, values in ours.items():
        if name.startswith(("adapter.", "decoder.")):
            continue
        block = re.match(r"encoder\.layers\.(\d+)\.", name)
        norm = norm_is_last and name.startswith("encoder.layer_norm.")
        found = sums.setdefault(block[1] if block else "final_norm" if norm else "input", [0.0, 0.0])
        found[0] += float((theirs[name].double() - values.double()).square().sum())
        found[1] += float(values.double().square().sum())
    assert {*sums} == {"input", "0", "1"} | ({"final_norm"} if norm_is_last else set())
    drifts = {layer.key.label: layer.drift for layer in report.layers}
    assert drifts == {label: pytest.approx(math.sqrt(moved / whole)) for label, (moved, whole) in sums.items()}


def test_the_drift_does_not_depend_on_what_is_merged_how(save_pair: SavePair, few_clips: tuple[Path, ...]) -> None:
    pair = save_pair("Hubert", "ForCTC")
    recipes = [
        Recipe(), Recipe(alpha=0), Recipe(alpha=1), Recipe(keep_head=True), Recipe(layer_alpha=(parse_rule("1=0"),))
    ]  # fmt: skip
    reports = [compare(*pair, request=ProbeRequest(paths=few_clips), recipe=recipe) for recipe in recipes]
    drifts = [[layer.drift for layer in report.layers] for report in reports]
    assert all(drift is not None for drift in drifts[0])
    assert all(found == drifts[0] for found in drifts)


@pytest.mark.parametrize(
    ("recipe", "measured"),
    [
        (Recipe(alpha=0), set()),
        (Recipe(alpha=1), set()),
        (Recipe(alpha=0, layer_alpha=(parse_rule("0=0.5"),)), {"0"}),
        (Recipe(layer_alpha=(parse_rule("0=0"), parse_rule("1=1"))), {"input"}),
        (Recipe(layer_alpha=(parse_rule("0=1"),)), {"input", "1"}),
    ],
    ids=["alpha 0", "alpha 1", "one block alone", "all blocks by rules", "one block aside"],
)
def test_a_merge_and_the_comparison_after_it_have_one_drift(
    recipe: Recipe, measured: set[str], save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    """Where the merge had nothing to measure, since it copied a layer, both have none."""
    with open_merge(*save_pair("Hubert", "ForCTC"), recipe, UNSYNCED) as opened:
        result = opened.write(tmp_path / "merged")
        report = opened.compare(ProbeRequest(paths=few_clips), result)
        again = opened.compare(ProbeRequest(paths=few_clips), opened.write(tmp_path / "merged"))
    merged = {row.key.label: row.drift for row in result.manifest.layers if row.interpolated or row.alpha == 0}
    compared = {layer.key.label: layer.drift for layer in report.layers}
    assert {label for label, drift in compared.items() if drift is not None} == measured
    assert [compared[block] for block in "01"] == [merged[block] for block in "01"]
    assert (compared["input"] is None) == all(drift is None for label, drift in merged.items() if label not in "01")
    assert all(layer.drift is not None for layer in again.layers)  # done already, that merge measured nothing


def test_of_several_fine_tunes_the_drift_is_the_merges_own(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, first = save_pair("Hubert", "ForCTC")
    fine_tunes = [first, save_pair("Hubert", "ForSequenceClassification")[1]]
    rows = merge(base, fine_tunes, tmp_path / "merged", options=UNSYNCED).manifest.layers
    report = compare(base, fine_tunes, request=ProbeRequest(paths=few_clips))
    merged = {row.key: row.drift for row in rows}
    assert [layer.drift for layer in report.layers[1:]] == [merged[layer.key] for layer in report.layers[1:]]


def test_a_plan_in_the_form_in_which_it_is_written_is_carried_out_in_memory_too(
    few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    """A lab's base, to be written for transformers: the plan then has other names than its file."""
    lab = LABS["HuBERT"]
    base = build_lab(lab).state_dict()
    for name, weights in (("base.pt", base), ("finetuned.pt", shaken(base))):
        torch.save(lab_files.s3prl_base(lab, weights), tmp_path / name)
    request = ProbeRequest(paths=few_clips)
    whole = compare(str(tmp_path / "base.pt"), str(tmp_path / "finetuned.pt"), request=request)
    opened, other = (open_checkpoint(str(tmp_path / name)) for name in ("base.pt", "finetuned.pt"))
    plan = decide_form(make_plan(opened, [other], Recipe(format="safetensors")), opened, other, None).plan
    assert {tensor.name for tensor in plan.tensors} != opened.tensors.keys()
    assert compare_models(ComparedModels(opened, [other], plan), request).layers == whole.layers
    opened.close()
    other.close()


@pytest.mark.parametrize(
    ("config", "merged", "recipe"),
    [({}, None, Recipe(weight=(1.0, 2.0))), ({}, "nowhere", None), ({"num_hidden_layers": 3}, None, None)],
)
def test_a_comparison_that_fails_leaves_no_file_open(
    config: dict[str, Any], merged: str | None, recipe: Recipe | None, save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    base, finetuned = save_pair("Hubert", **config)[0], save_pair("Hubert")[1]
    request = ProbeRequest(paths=few_clips)
    gc.collect()
    gc.disable()
    try:
        before = len([*Path("/proc/self/fd").iterdir()])
        with pytest.raises(SpeechFTMergeError):
            compare(base, finetuned, merged, request, recipe=recipe)
        assert len([*Path("/proc/self/fd").iterdir()]) == before
    finally:
        gc.enable()


def test_without_memory_for_the_features_the_figures_are_the_same_but_for_the_errors(
    save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    pair = save_pair("Hubert", "ForCTC")
    kept = compare(*pair, request=ProbeRequest(paths=few_clips))
    summed = compare(*pair, request=ProbeRequest(paths=few_clips, memory=1000, null=True, grid=True))
    assert any("no standard errors, floor or grid" in warning for warning in summed.warnings)
    assert summed.grids == {}
    for one, other in zip(kept.layers, summed.layers, strict=True):
        for pair_name, found in one.pairs.items():
            assert math.isfinite(found.se)
            assert math.isnan(other.pairs[pair_name].se)
            assert other.pairs[pair_name].cka == found.cka


def test_the_floor_of_the_shipped_pair_is_0_and_below_all_that_it_is_the_floor_of() -> None:
    report = compare("examples/pair/base", "examples/pair/finetuned", request=ProbeRequest(null=True))
    assert len(report.layers) == 7
    assert report.warnings == ()
    for layer in report.layers:
        assert layer.null is not None
        assert abs(layer.null.mean) < 3 * layer.null.sd / math.sqrt(20) + 0.002
        assert layer.null.mean + 2 * layer.null.sd < min(found.cka for found in layer.pairs.values())
        assert layer.null.aligned > 5 * layer.null.sd


def test_fine_tuning_moved_the_shipped_pair_and_the_merge_takes_most_of_it_back() -> None:
    """Ordered as every run must order them, with margins of many standard errors."""
    report = compare("examples/pair/base", "examples/pair/finetuned")
    last = report.layers[-1].pairs
    assert last["base_finetuned"].cka < 0.3 < 0.6 < last["base_merged"].cka < 0.95
    assert last["base_finetuned"].cka < last["finetuned_merged"].cka < last["base_merged"].cka
    assert all(0 < found.se < 0.15 for found in last.values())
    assert (report.utterances, report.groups, report.grouped_by) == (24, 6, "voice")


def test_the_grid_has_the_table_as_its_diagonal(save_pair: SavePair, few_clips: tuple[Path, ...]) -> None:
    report = compare(*save_pair("Hubert"), request=ProbeRequest(paths=few_clips, grid=True))
    assert set(report.grids) == {"base_finetuned", "base_merged", "finetuned_merged"}
    for name, grid in report.grids.items():
        assert np.shape(grid) == (3, 3)
        for number, layer in enumerate(report.layers):
            assert grid[number][number] == pytest.approx(layer.pairs[name].cka, abs=1e-9)


@pytest.mark.parametrize("estimator", ["frame", "biased"])
def test_the_estimator_that_was_asked_for_is_the_figure(
    estimator: Any, save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    report = compare(*save_pair("Hubert"), request=ProbeRequest(paths=few_clips, estimator=estimator))
    for layer in report.layers:
        for found in layer.pairs.values():
            assert found.cka == getattr(found, estimator)
            assert math.isnan(found.se)


def test_the_document_has_the_fields_that_were_promised(save_pair: SavePair, few_clips: tuple[Path, ...]) -> None:
    document = compare(*save_pair("Hubert"), request=ProbeRequest(paths=few_clips, null=True)).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["estimator"] == "group"
    assert (document["utterances"], document["groups"], document["grouped_by"]) == (5, 5, "file")
    assert (document["probe"]["grouped_by"], document["probe"]["groups"]) == ("name", {"en": 5})
    assert len(document["probe"]["sha256"]) == 64
    assert {
        "layer", "part", "stack", "base_finetuned", "base_merged", "finetuned_merged", "drift",
        "null", "null_sd", "null_aligned",
    } == set(document["layers"][0])  # fmt: skip
    assert {"cka", "se", "low", "high", "frame", "biased", "procrustes", "cosine"} == set(
        document["layers"][0]["base_merged"]
    )
    assert {"cka", "se", "low", "high"} == set(document["mean"]["base_merged"])


# What cannot be compared.


def test_too_little_audio_is_refused_with_what_it_gives_and_what_is_needed(
    save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    with pytest.raises(
        CheckpointError, match=r"the probe's 0\.8 seconds give 1 usable clip, at least 4 are needed; give more"
    ):
        compare(*save_pair("Hubert"), request=ProbeRequest(paths=few_clips[:1], seconds=2))


@pytest.mark.parametrize(
    ("files", "group_by", "groups", "by", "said"),
    [
        (5, "auto", 5, "file", "the 5 clips are of 1 group (by name), at least 4 are needed: each file is taken"),
        (24, r"/(..)-[^/]+$", 4, "pattern", "the probe has 4 groups (by pattern); with fewer than 6 the figures are"),
        (24, r"-(\w+)-", 7, "pattern", None),
        (7, "file", 7, "file", None),
    ],
)
def test_what_is_taken_as_a_group_is_said(
    files: int, group_by: str, groups: int, by: str, said: str | None, save_pair: SavePair
) -> None:
    request = ProbeRequest(paths=tuple(sorted(BUILT_IN.glob("*.flac"))[:files]), group_by=group_by)
    report = compare(*save_pair("Hubert"), request=request)
    assert (report.groups, report.grouped_by) == (groups, by)
    assert any(said in warning for warning in report.warnings) if said else "group" not in "".join(report.warnings)


def test_of_one_recording_alone_it_is_said_that_error_bars_say_nothing_of_others(
    save_pair: SavePair, write_audio: WriteAudio
) -> None:
    report = compare(*save_pair("Hubert"), request=ProbeRequest(paths=(write_audio("talk.wav", 8.0),)))
    assert (report.utterances, report.groups, report.grouped_by) == (8, 8, "clip")
    assert any("of 1 group (by file), at least 4 are needed: each clip is taken as one, and error bars say nothing of "
               "other voices" in warning for warning in report.warnings)  # fmt: skip
    assert all(math.isfinite(found.se) for layer in report.layers for found in layer.pairs.values())


@pytest.mark.parametrize("config", [{}, LARGE], ids=["one by one", "in batches"])
def test_the_frames_of_a_group_are_one_unit_in_whatever_order_they_come(
    config: dict[str, Any], save_pair: SavePair, tmp_path: Path
) -> None:
    """Against plain code over transformers' own hidden states, which are concatenated by voice."""
    files = sorted(BUILT_IN.glob("*.flac"))[::3]
    voices = [number % 5 for number in range(len(files))]
    table = tmp_path / "probe.tsv"
    rows = [f"{path}\t{voice}" for path, voice in zip(files, voices, strict=True)]
    table.write_text("\n".join(["path\tgroup", *rows]))
    base, finetuned = save_pair("Hubert", "ForCTC", **config)
    report = compare(base, finetuned, request=ProbeRequest(paths=(table,)))
    assert (report.groups, report.utterances) == (5, 8)
    by_clip = [features_by_transformers(base, "Hubert", "Model", tuple(files)),
               features_by_transformers(finetuned, "Hubert", "ForCTC", tuple(files))]  # fmt: skip
    states = [
        [[np.concatenate([c for c, own in zip(layer, voices, strict=True) if own == voice]) for voice in range(5)]
         for layer in side] for side in by_clip
    ]  # fmt: skip
    for number, (xs, ys) in enumerate(zip(*states, strict=True)):
        if config and number == len(states[0]) - 1:
            continue  # with a norm after the blocks, the class has no state before it
        found = report.layers[number].pairs["base_finetuned"]
        assert found.cka == pytest.approx(oracles.ratio(oracles.hsic_of_groups, xs, ys), abs=1e-4)
        left_out = [oracles.ratio(oracles.hsic_of_groups, xs[:g] + xs[g + 1 :], ys[:g] + ys[g + 1 :]) for g in range(5)]
        assert found.se == pytest.approx(math.sqrt(4 / 5 * np.sum((left_out - np.mean(left_out)) ** 2)), rel=0.02)
    alone = compare(base, finetuned, request=ProbeRequest(paths=(table,), memory=1000))
    for one, other in zip(report.layers, alone.layers, strict=True):
        assert one.pairs["base_merged"].cka == other.pairs["base_merged"].cka


def test_models_of_other_widths_are_refused(save_pair: SavePair) -> None:
    wide = save_pair("Hubert", hidden_size=64)
    with pytest.raises(MismatchError, match="other shapes"):
        compare(save_pair("Hubert")[0], wide[1])


def test_models_of_other_depths_are_refused(save_pair: SavePair, few_clips: tuple[Path, ...]) -> None:
    deep = save_pair("Hubert", num_hidden_layers=3)
    with pytest.raises(MismatchError, match=r"base ends in layer 2, finetuned ends in layer 1, merged ends in layer 2"):
        compare(deep[0], save_pair("Hubert")[1], request=ProbeRequest(paths=few_clips))


def test_features_that_are_not_finite_are_refused(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, _ = save_pair("Hubert")
    model = transformers().HubertModel.from_pretrained(base)
    model.encoder.layers[0].final_layer_norm.weight.data.fill_(1e38)
    model.save_pretrained(tmp_path / "huge")
    with pytest.raises(MismatchError, match="not finite on the probe"):
        compare(base, str(tmp_path / "huge"), request=ProbeRequest(paths=few_clips))


def test_a_model_that_transformers_does_not_know_is_named(save_pair: SavePair, tmp_path: Path) -> None:
    base, finetuned = save_pair("Hubert")
    strange = shutil.copytree(base, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text()) | {"model_type": "hubble"}
    (strange / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not know its model_type 'hubble'"):
        compare(str(strange), finetuned)


@pytest.mark.parametrize("which", [0, 1], ids=["of the base", "of the fine-tune"])
def test_what_one_file_states_goes_before_what_is_guessed_of_the_other(
    which: int, save_pair: SavePair, few_clips: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, request = save_pair("Hubert", "ForCTC"), ProbeRequest(paths=few_clips)
    whole = compare(*pair, request=request)

    def read(checkpoint: Checkpoint) -> ModelConfig:
        found = read_model_config(checkpoint)
        guess = found._replace(config={**(found.config or {}), "hidden_act": "relu"}, stated=False)
        return guess if checkpoint.reference == pair[which] else found

    monkeypatch.setattr("speechft_merge.similarity.models.read_model_config", read)
    assert compare(*pair, request=request).layers == whole.layers


def test_one_config_is_enough_for_two_models_of_one_shape_and_none_is_not(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, finetuned = save_pair("Hubert", "ForCTC")
    for number, path in enumerate((base, finetuned)):
        (tmp_path / f"bare{number}").mkdir()
        shutil.copy(f"{path}/model.safetensors", tmp_path / f"bare{number}")
    request = ProbeRequest(paths=few_clips)
    whole = compare(base, finetuned, request=request)
    assert compare(str(tmp_path / "bare0"), finetuned, request=request).layers == whole.layers
    assert compare(base, str(tmp_path / "bare1"), request=request).layers == whole.layers
    with pytest.raises(CheckpointError, match=r"no config\.json beside the weights"):
        compare(str(tmp_path / "bare0"), str(tmp_path / "bare1"))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config", "num_attention_heads", 0),
        ("config", "hidden_size", "big"),
        ("config", "conv_stride", [0] * 7),
        ("config", "conv_kernel", [None] * 7),
        ("preprocessor_config", "sampling_rate", 0),
        ("preprocessor_config", "sampling_rate", "16k"),
        ("preprocessor_config", "sampling_rate", 10**9),
        ("preprocessor_config", "feature_extractor_type", "SequenceFeatureExtractor"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    file: str, key: str, value: object, save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, finetuned = save_pair("Hubert")
    odd = shutil.copytree(base, tmp_path / "odd")
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}
    path = odd / f"{file}.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else settings) | {key: value}))
    with pytest.raises(CheckpointError):
        compare(str(odd), finetuned, request=ProbeRequest(paths=few_clips))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "somebody/kernel"),
        ("return_dict", False),
        ("dtype", "nonsense"),
    ],
)
def test_a_config_says_what_the_model_is_and_not_how_it_is_run(
    key: str, value: object, save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    """Some such keys would make transformers fetch code and run it."""
    base, finetuned = save_pair("Hubert")
    odd = shutil.copytree(base, tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps(json.loads((odd / "config.json").read_text()) | {key: value}))
    request = ProbeRequest(paths=few_clips)
    assert compare(str(odd), finetuned, request=request).layers == compare(base, finetuned, request=request).layers


def test_a_config_of_another_model_is_found_out(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, finetuned = save_pair("Hubert")
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": 3}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json of the same model as its weights"):
        compare(str(other), finetuned, request=ProbeRequest(paths=few_clips))


def test_the_models_run_on_as_many_threads_as_asked_and_torch_keeps_its_own(
    save_pair: SavePair, few_clips: tuple[Path, ...]
) -> None:
    before, threads = torch.get_num_threads(), set[int]()
    request = ProbeRequest(paths=few_clips, workers=before + 1)

    def look(step: Step) -> None:
        if step.unit == "clips" and step.done:
            threads.add(torch.get_num_threads())

    compare(*save_pair("Hubert"), request=request, progress=look)
    assert threads == {before + 1}
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="0 workers"):
        ProbeRequest(workers=0)


def test_an_unknown_device_or_estimator_is_refused(save_pair: SavePair) -> None:
    with pytest.raises(UsageError, match="device 'quantum' is unknown"):
        compare(*save_pair("Hubert"), request=ProbeRequest(device="quantum"))
    with pytest.raises(UsageError, match="use one of group, frame, biased"):
        ProbeRequest(estimator="debiased")  # type: ignore[arg-type]


def test_feature_extractors_that_disagree_are_warned_of(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, finetuned = (shutil.copytree(path, tmp_path / str(i)) for i, path in enumerate(save_pair("Hubert")))
    for folder, normalise in ((base, True), (finetuned, False)):
        extractor = transformers().Wav2Vec2FeatureExtractor(do_normalize=normalise)
        extractor.save_pretrained(folder)
    report = compare(str(base), str(finetuned), request=ProbeRequest(paths=few_clips))
    assert any("differ in do_normalize" in warning for warning in report.warnings)


def test_a_model_that_is_not_the_same_twice_is_refused(
    save_pair: SavePair, few_clips: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise alpha 0 would not read 1, and no figure could be trusted."""
    monkeypatch.setattr(transformers().PreTrainedModel, "eval", lambda self: self.train())
    with pytest.raises(MismatchError, match="gives other features each time"):
        compare(*save_pair("Hubert", hidden_dropout=0.5), request=ProbeRequest(paths=few_clips))
