"""DeCoAR 2.0, which transformers has no class of, against the definitions written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lab_files
import numpy as np
import oracles
import pytest
import soundfile
import torch
from lab_models import BASE, Lab, LabModel, build_lab, shaken
from options import UNSYNCED

from speechft_merge import ProbeRequest, Recipe, compare, open_merge
from speechft_merge.errors import CheckpointError
from speechft_merge.live import live_encoder
from speechft_merge.similarity.comparison import make_inputs
from speechft_merge.similarity.decoar2 import Decoar2Config, Decoar2FeatureExtractor, Decoar2Model
from speechft_merge.similarity.models import ComparedModels, encoder_sources
from speechft_merge.stage1 import Schedule, StableFineTuning

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LAB = BASE["decoar2"]


def mel(hertz: float | NDArray[Any]) -> Any:
    return 1127 * np.log(1 + hertz / 700)


def filter_bank(samples: NDArray[Any]) -> NDArray[Any]:
    """Kaldi's log mel energies, 80 bands of windows of 25 ms every 10 ms: (windows, 80), in float64."""
    edges = np.linspace(mel(20), mel(8000), 82)
    bins = mel(16_000 / 512 * np.arange(256))
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399)
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])) * window
        power = np.abs(np.fft.rfft(frame, 512)[:256]) ** 2
        rising, falling = ((bins - edges[:-2, None]), (edges[2:, None] - bins))
        weights = np.minimum(rising, falling).clip(0) / (edges[1] - edges[0])
        rows.append(np.log(np.maximum(weights @ power, 2**-23)))
    return np.array(rows)


Files = tuple[LabModel, LabModel, "Path", "Path"]


def features_by_hand(model: LabModel, clip: Path) -> list[NDArray[np.float64]]:
    """Of each layer (frames, width): every second window, each band normalised over the clip, the lab's own blocks."""
    bands = filter_bank(soundfile.read(clip, dtype="float32")[0])
    normalised = ((bands - bands.mean(0)) / bands.std(0, ddof=1))[::2]
    with torch.no_grad():
        states = model.encoder(model.post_extract_proj(torch.from_numpy(normalised[None]).float()))
    return [state[0].double().numpy() for state in states]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Its original file and an S3PRL fine-tune, without a config.json between them, and the models in them."""
    base, finetuned = build_lab(LAB), build_lab(LAB)
    finetuned.load_state_dict(shaken(base.state_dict()))
    torch.save(lab_files.decoar2(LAB, base.state_dict()), tmp_path / "base.pt")
    torch.save(lab_files.s3prl_finetune(LAB, finetuned.state_dict()), tmp_path / "dev-best.ckpt")
    return base, finetuned, tmp_path / "base.pt", tmp_path / "dev-best.ckpt"


def test_every_layer_is_that_of_the_published_description(files: Files, few_clips: tuple[Path, ...]) -> None:
    model, _, base, finetuned = files
    with open_merge(str(base), str(finetuned), Recipe(alpha=0.0)) as opened:
        models = ComparedModels(opened.base, opened.finetuned, opened.plan)
        live, sources = live_encoder(models, torch.device("cpu")), encoder_sources(models)
        live.set(opened.plan)
    maker, warnings = make_inputs(*sources)
    assert warnings == []
    for clip in few_clips[:2]:
        (batch,) = maker.batches([soundfile.read(clip, dtype="float32")[0]])
        (found,) = live.encoder.run(batch)
        assert [key.label for key in found] == ["input", "0", "1"]
        for ours, theirs in zip(found.values(), features_by_hand(model, clip), strict=True):
            np.testing.assert_allclose(ours.double().numpy(), theirs, atol=2e-4)


def test_a_labs_files_are_compared_without_a_config_and_read_what_plain_code_reads(
    files: Files, few_clips: tuple[Path, ...]
) -> None:
    *models, base, finetuned = files
    report = compare(str(base), str(finetuned), request=ProbeRequest(paths=few_clips))
    both = [[features_by_hand(model, clip) for clip in few_clips] for model in models]
    assert report.frames == sum(len(clip[0]) for clip in both[0])
    for number, layer in enumerate(report.layers):
        x, y = (np.concatenate([clip[number] for clip in clips]) for clips in both)
        assert layer.pairs["base_finetuned"].biased == pytest.approx(oracles.cka_biased(x, y), abs=1e-4)
        assert layer.drift is not None


def test_of_its_published_width_the_shapes_alone_tell_all_settings(few_clips: tuple[Path, ...], tmp_path: Path) -> None:
    """Two S3PRL fine-tunes, which hold no settings."""
    lab = Lab("decoar2", layers=1, width=768, heads=12, conv_pos_groups=16)
    models = build_lab(lab), build_lab(lab)
    models[1].load_state_dict(shaken(models[0].state_dict()))
    files = [tmp_path / "first.ckpt", tmp_path / "second.ckpt"]
    for model, file in zip(models, files, strict=True):
        torch.save(lab_files.s3prl_finetune(lab, model.state_dict()), file)
    report = compare(*map(str, files), request=ProbeRequest(paths=few_clips[:4], estimator="biased"))
    both = [[features_by_hand(model, clip) for clip in few_clips[:4]] for model in models]
    for number, layer in enumerate(report.layers):
        x, y = (np.concatenate([clip[number] for clip in clips]) for clips in both)
        assert layer.pairs["base_finetuned"].cka == pytest.approx(oracles.cka_biased(x, y), abs=1e-4)


def test_what_no_shape_shows_is_asked_of_the_base_and_not_of_a_config_that_cannot_be(
    files: Files, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    base, *_, finetuned = files
    torch.save(base.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="number of attention heads") as caught:
        compare(str(tmp_path / "bare.pt"), str(finetuned), request=ProbeRequest(paths=few_clips))
    assert "its lab published it" in str(caught.value)
    assert "beside the weights" not in str(caught.value.hint)


def test_a_merge_of_its_files_is_compared_as_it_is_written(
    files: Files, few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    *_, base, finetuned = files
    with open_merge(str(base), str(finetuned), options=UNSYNCED) as opened:
        report = opened.compare(ProbeRequest(paths=few_clips), opened.write(tmp_path / "merged"))
    in_memory = compare(str(base), str(finetuned), request=ProbeRequest(paths=few_clips))
    assert [layer.pairs for layer in report.layers] == [layer.pairs for layer in in_memory.layers]


def test_clips_give_beside_others_what_they_give_alone() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = Decoar2Model(Decoar2Config(**sizes, num_conv_pos_embedding_groups=2)).eval()
    extract, random = Decoar2FeatureExtractor(), np.random.default_rng(0)
    clips = [random.standard_normal(count).astype(np.float32) for count in (8000, 5000)]
    together = extract(clips, return_tensors="pt")
    with torch.no_grad():
        found = model(**together).last_hidden_state
        for row, clip in zip(found, clips, strict=True):
            alone = model(**extract([clip], return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_all_of_it_trains_in_stage_1_once_the_head_has() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = Decoar2Model(Decoar2Config(**sizes, num_conv_pos_embedding_groups=2, layerdrop=0.5))
    model = torch.nn.ModuleDict({"upstream": encoder, "head": torch.nn.Linear(32, 3)})
    stage = StableFineTuning(model, Schedule(20))
    assert stage.encoder == "upstream"
    for step in (0, 19):
        stage.begin(step)
        training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        heads = {"head.weight", "head.bias"}
        assert training == (heads if step == 0 else {name for name, _ in model.named_parameters()})
    assert encoder.config.layerdrop == 0.0
