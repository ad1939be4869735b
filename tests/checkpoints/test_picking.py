"""One of several encoders in a file is picked by name, nested or side by side, and told where that is not done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import build
from options import UNSYNCED
from safetensors.torch import load_file

from speechft_merge import merge, open_checkpoint
from speechft_merge.errors import NotFoundError
from speechft_merge.record.identity import fingerprint
from speechft_merge.sources.reference import encoder_of

HUBERT = build("Hubert").state_dict()


def moved(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in HUBERT.items()}


STUDENT, AVERAGE = moved(1), moved(2)


def flat(**models: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for prefix, model in models.items() for name, tensor in model.items()}


FILES: dict[str, tuple[Any, str]] = {
    "side by side": (flat(teacher=HUBERT, student=STUDENT), "student"),
    "under a wrapper": ({f"module.{n}": t for n, t in flat(t=HUBERT, student=STUDENT).items()}, "student"),
    "nested": ({"teacher": HUBERT, "student": STUDENT}, "student"),
    "deep": ({"ema": {"model": HUBERT}, "run": {"student": STUDENT}}, "student"),
    "deep, by its path": ({"a": {"model": HUBERT}, "b": {"model": STUDENT}}, "b.model"),
    "nested and prefixed": ({"epoch": 3, "models": flat(old=HUBERT, student=STUDENT)}, "student"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "base"
    build("Hubert").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_a_part_is_merged_as_a_file_of_its_own_would_be(kind: str, base: Path, tmp_path: Path) -> None:
    content, name = FILES[kind]
    torch.save(content, tmp_path / "both.pt")
    result = merge(base, f"{tmp_path}/both.pt#{name}", tmp_path / "out", options=UNSYNCED)
    assert result.findings == ()
    assert result.manifest.finetuned[0].reference.endswith(f"both.pt#{name}")
    for tensor, merged in load_file(tmp_path / "out/model.safetensors").items():
        expected = HUBERT[tensor].double() + 0.25 * (STUDENT[tensor].double() - HUBERT[tensor].double())
        torch.testing.assert_close(merged.double(), expected, atol=1e-7, rtol=0)


def test_parts_of_one_file_have_their_own_fingerprints(tmp_path: Path) -> None:
    torch.save({"a": HUBERT, "b": STUDENT}, tmp_path / "both.pt")
    prints = []
    for part in ("a", "b"):
        with open_checkpoint(f"{tmp_path}/both.pt#{part}") as checkpoint:
            prints.append(fingerprint(checkpoint))
    assert prints[0] != prints[1]


def test_a_name_that_picks_nothing_is_told_what_there_is(tmp_path: Path) -> None:
    torch.save({"teacher": HUBERT, "student": STUDENT}, tmp_path / "both.pt")
    with pytest.raises(NotFoundError, match=r"no encoder named 'studnet'; found .*student, teacher"):
        open_checkpoint(f"{tmp_path}/both.pt#studnet")


def test_a_name_that_picks_two_is_refused(tmp_path: Path) -> None:
    torch.save({"a": {"model": HUBERT}, "b": {"model": STUDENT}}, tmp_path / "both.pt")
    with pytest.raises(NotFoundError, match=r"more than one encoder under the name 'model'; found a\.model, b\.model"):
        open_checkpoint(f"{tmp_path}/both.pt#model")


def test_a_file_whose_name_holds_the_mark_is_itself(tmp_path: Path) -> None:
    torch.save(HUBERT, tmp_path / "run#3.pt")
    with open_checkpoint(tmp_path / "run#3.pt") as checkpoint:
        assert (checkpoint.picked, len(checkpoint.tensors)) == ("", len(HUBERT))
    assert encoder_of(f"{tmp_path}/run#3.pt#encoder") == "encoder"
    assert encoder_of("org/name@main:last.ckpt#student") == "student"
    assert encoder_of("org/name") == ""


def test_optimizer_states_and_scraps_are_no_models(tmp_path: Path) -> None:
    moments = {"state": {0: {"exp_avg": HUBERT["encoder.layer_norm.weight"]}}}
    scraps = {"mean": torch.zeros(3)}
    torch.save(
        {"model": HUBERT, "optimizer": dict(HUBERT), "last_optimizer_state": moments, "cmvn": scraps}, tmp_path / "f"
    )
    with open_checkpoint(tmp_path / "f") as checkpoint:
        assert (checkpoint.state_path, dict(checkpoint.alternatives)) == ("model", {})


def test_an_average_beside_the_model_is_noted(base: Path, tmp_path: Path) -> None:
    torch.save({"model_avg": {n: t.double() for n, t in AVERAGE.items()}, "model": STUDENT}, tmp_path / "epoch.pt")
    result = merge(base, tmp_path / "epoch.pt", tmp_path / "out", options=UNSYNCED)
    (finding,) = result.findings
    assert "'model' is taken" in finding.text
    with open_checkpoint(f"{tmp_path}/epoch.pt#model_avg") as checkpoint:
        assert {span.dtype.torch_name for span in checkpoint.tensors.values()} == {"float64"}


def test_a_larger_neighbour_does_not_win_over_the_one_that_fits_the_base(base: Path, tmp_path: Path) -> None:
    language_model = {f"layers.{i}.weight": torch.zeros(200, 200) for i in range(24)}
    torch.save({"llm": language_model, "audio_tower": STUDENT}, tmp_path / "joint.pt")
    result = merge(base, tmp_path / "joint.pt", tmp_path / "out", options=UNSYNCED)
    assert result.findings == ()
    assert result.manifest.coverage == 1
