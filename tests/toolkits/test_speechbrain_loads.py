"""SpeechBrain's wrappers and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import differences, interpolate, moved, rounded
from loaders import merged, toolkit, waves
from models import build, fine_tune, transformers
from options import UNSYNCED

from speechft_merge import merge

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

WRAPPERS = {"Hubert": "hubert.HuBERT", "Wav2Vec2": "wav2vec2.Wav2Vec2", "WavLM": "wavlm.WavLM"}
FAMILIES = pytest.mark.parametrize("family", WRAPPERS)


def wrapper(family: str, source: Path) -> Any:
    """SpeechBrain's module around a model of transformers; what it saves has `model.` before each name."""
    module, name = WRAPPERS[family].split(".")
    made = getattr(toolkit(f"speechbrain.integrations.huggingface.{module}"), name)
    return made(str(source), str(source / "cache"), output_all_hiddens=True, freeze=True)


def features(model: Any) -> torch.Tensor:
    with torch.no_grad():
        hidden: torch.Tensor = model.eval()(waves())
    return hidden


def save(family: str, kind: str, folder: Path, base: Any = None) -> Any:
    model = build(family) if base is None else fine_tune(base, family, kind)
    model.save_pretrained(folder)
    transformers().Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """Write a wrapper's state as SpeechBrain's own Checkpointer does."""

    def write(model: Any, name: str) -> Path:
        saver = toolkit("speechbrain.utils.checkpoints").Checkpointer(tmp_path / name, {"wav2vec2": model})
        path: Path = saver.save_checkpoint().path / "wav2vec2.ckpt"
        return path

    return write


@FAMILIES
def test_a_wrapper_loads_a_merged_folder(family: str, tmp_path: Path) -> None:
    base = save(family, "Model", tmp_path / "base")
    tuned = save(family, "ForCTC", tmp_path / "tuned", base)
    merge(str(tmp_path / "base"), str(tmp_path / "tuned"), tmp_path / "out", options=UNSYNCED)
    found, by_hand = wrapper(family, tmp_path / "out"), wrapper(family, tmp_path / "base")
    wanted = interpolate(base.state_dict(), getattr(tuned, tuned.base_model_prefix).state_dict())
    assert differences(found.model.state_dict(), wanted) == {}
    by_hand.model.load_state_dict(rounded(wanted, base.state_dict()))
    assert found.normalize_wav
    torch.testing.assert_close(features(found), features(by_hand), rtol=1e-4, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("theirs", ["SpeechBrain", "transformers"])
def test_a_checkpoint_of_speechbrain_is_written_back_as_one(
    family: str, theirs: str, checkpoint: Any, tmp_path: Path
) -> None:
    ours = save(family, "Model", tmp_path / "source")
    model = wrapper(family, tmp_path / "source")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = checkpoint(model, "base")
    if theirs == "SpeechBrain":
        model.load_state_dict(moved(base))
        tuned, second = model.state_dict(), checkpoint(model, "tuned")
    else:
        second = tmp_path / "tuned"
        task = save(family, "ForCTC", second, ours)
        tuned = {f"model.{n}": tensor for n, tensor in getattr(task, task.base_model_prefix).state_dict().items()}
    wanted = interpolate(base, tuned)

    file = merged(path, second, tmp_path / "out")
    assert file.suffix == path.suffix
    found = wrapper(family, tmp_path / "source")
    found.load_state_dict(torch.load(file), strict=True)
    assert differences(found.state_dict(), wanted) == {}
    again = wrapper(family, tmp_path / "source")
    loader = toolkit("speechbrain.utils.parameter_transfer").Pretrainer(
        tmp_path / "collected", {"wav2vec2": again}, {"wav2vec2": str(file)}
    )
    loader.collect_files()
    loader.load_collected()
    torch.testing.assert_close(again.state_dict(), found.state_dict(), rtol=0, atol=0)


@FAMILIES
@pytest.mark.parametrize("keep_head", [False, True])
def test_a_checkpoint_of_speechbrain_merges_with_a_folder(
    family: str, keep_head: bool, checkpoint: Any, tmp_path: Path
) -> None:
    base = save(family, "Model", tmp_path / "base")
    model = wrapper(family, tmp_path / "base")
    model.load_state_dict(moved(model.state_dict()))
    wanted = interpolate(base.state_dict(), model.model.state_dict())
    file = merged(tmp_path / "base", checkpoint(model, "tuned"), tmp_path / "out", keep_head=keep_head)
    if keep_head:
        model.load_state_dict(torch.load(file), strict=True)
    else:
        model = wrapper(family, tmp_path / "out")
    assert differences(model.model.state_dict(), wanted) == {}
