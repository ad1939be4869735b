"""Input and output embedding come out equal if they are one in the owner: by content, or by its config.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from models import build
from plan_pairs import moved
from safetensors.torch import load_file, save_file, save_model

from speechft_merge import MergeOptions, Recipe, merge
from speechft_merge.plan.findings import Level

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDING, PROJECTION = "model.decoder.embed_tokens.weight", "proj_out.weight"
UNSYNCED = MergeOptions(fsync=False)


def write(folder: Path, tensors: dict[str, torch.Tensor], twice: bool, **config: object) -> Path:
    """A folder of transformers that stores the embedding once, or twice in copies."""
    model = build("Whisper", "ForConditionalGeneration", vocab_size=200)
    model.config.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in tensors.items() if twice or name != PROJECTION}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def pair() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    base = build("Whisper", "ForConditionalGeneration", vocab_size=200).state_dict()
    tuned = moved(base)
    tuned[PROJECTION] = tuned[EMBEDDING]
    return dict(base), tuned


@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True)])
def test_two_equal_copies_stay_equal(ours: bool, theirs: bool, keep_head: bool, tmp_path: Path) -> None:
    base, tuned = pair()
    models = write(tmp_path / "base", base, ours), write(tmp_path / "tuned", tuned, theirs)
    merge(*models, tmp_path / "out", Recipe(keep_head=keep_head), options=UNSYNCED)
    out = load_file(tmp_path / "out/model.safetensors")
    assert (PROJECTION in out) == (theirs if keep_head else ours)
    assert torch.equal(out.get(PROJECTION, out[EMBEDDING]), out[EMBEDDING])
    expected = base[EMBEDDING].double() + 0.25 * (tuned[EMBEDDING].double() - base[EMBEDDING].double())
    torch.testing.assert_close(out[EMBEDDING].double(), expected, atol=1e-7, rtol=0)


def test_a_tied_tensor_that_save_model_dropped_is_known_by_the_metadata(tmp_path: Path) -> None:
    model = build("Whisper", "ForConditionalGeneration", vocab_size=200)
    save_model(model, str(tmp_path / "base.safetensors"))
    (dropped,) = {PROJECTION, EMBEDDING} - load_file(tmp_path / "base.safetensors").keys()
    tuned = moved(model.state_dict())
    tuned[PROJECTION] = tuned[EMBEDDING].clone()
    save_file(tuned, tmp_path / "tuned.safetensors")
    merge(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "out", options=UNSYNCED)
    out = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(out[PROJECTION], out[EMBEDDING]), dropped
    expected = model.state_dict()[EMBEDDING] + 0.25 * (tuned[EMBEDDING] - model.state_dict()[EMBEDDING])
    torch.testing.assert_close(out[EMBEDDING], expected)


def test_copies_that_differ_are_two_unless_the_config_says_that_they_are_one(tmp_path: Path) -> None:
    base, tuned = pair()
    base[PROJECTION] = base[EMBEDDING] + 1e-3
    tuned = write(tmp_path / "tuned", tuned, twice=True)  # type: ignore[assignment]
    for said in (False, True):
        model = write(tmp_path / f"base{said}", base, twice=True, tie_word_embeddings=said)
        merge(model, str(tuned), tmp_path / f"out{said}", options=UNSYNCED)
        out = load_file(tmp_path / f"out{said}/model.safetensors")
        assert torch.equal(out[EMBEDDING], out[PROJECTION]) == said


def test_layers_that_are_one_in_the_base_and_differ_in_the_fine_tune_are_told(tmp_path: Path) -> None:
    shared = build("Hubert").state_dict()
    for name in [name for name in shared if ".layers.1." in name]:
        shared[name] = shared[name.replace(".layers.1.", ".layers.0.")]
    torch.save(shared, tmp_path / "base.pt")
    torch.save(moved(shared), tmp_path / "tuned.pt")
    (finding,) = merge(tmp_path / "base.pt", tmp_path / "tuned.pt", tmp_path / "out", options=UNSYNCED).findings
    assert finding.level is Level.WARNING
    assert "8 tensors are one with another" in finding.text
    again = {name: moved(shared)[name.replace(".layers.1.", ".layers.0.")] for name in shared}
    torch.save(again, tmp_path / "same.pt")
    assert merge(tmp_path / "base.pt", tmp_path / "same.pt", tmp_path / "other", options=UNSYNCED).findings == ()
