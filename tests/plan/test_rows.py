"""A vocabulary that grew, positions that were cut: the rows that both have are mixed, the others stay the owner's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from models import build
from plan_pairs import findings, moved, planned
from safetensors.torch import load_file, save_file

from speechft_merge import MergeOptions, Recipe, merge
from speechft_merge.plan.findings import Level

if TYPE_CHECKING:
    from pathlib import Path

WHISPER = build("Whisper", "ForConditionalGeneration", vocab_size=60).state_dict()
EMBEDDING, POSITIONS = "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"


def resized(name: str, rows: int) -> dict[str, torch.Tensor]:
    tuned = moved(WHISPER)
    old = tuned[name]
    tuned[name] = torch.cat([old, torch.randn(max(0, rows - len(old)), *old.shape[1:])])[:rows].clone()
    return tuned


@pytest.mark.parametrize(("name", "rows"), [(EMBEDDING, 63), (EMBEDDING, 50), (POSITIONS, 4)])
@pytest.mark.parametrize("keep_head", [False, True])
def test_common_rows_are_mixed_and_the_others_are_the_owners(
    name: str, rows: int, keep_head: bool, tmp_path: Path
) -> None:
    tuned = resized(name, rows)
    base = {n: t for n, t in WHISPER.items() if n != "proj_out.weight"}
    tuned.pop("proj_out.weight")
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    pair = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    result = merge(*pair, tmp_path / "out", Recipe(keep_head=keep_head), options=MergeOptions(fsync=False))
    merged = load_file(tmp_path / "out/model.safetensors")[name]
    owner = tuned if keep_head else base
    both = min(len(base[name]), rows)
    ours, theirs = base[name][:both].double(), tuned[name][:both].double()
    torch.testing.assert_close(merged[:both].double(), ours + 0.25 * (theirs - ours), atol=1e-7, rtol=0)
    assert torch.equal(merged[both:], owner[name][both:])
    (finding,) = [found for found in result.findings if name in found.text]
    change = f"{'grew' if rows > len(base[name]) else 'shrank'} from {len(base[name])} to {rows}"
    assert (finding.level, change in finding.text) == (Level.WARNING, True)


def test_a_vocabulary_that_was_replaced_stays_the_owners() -> None:
    tuned = resized(EMBEDDING, 63)
    tuned[EMBEDDING] = torch.randn(63, 32)
    made = {tensor.name: tensor for tensor in planned(WHISPER, tuned).tensors}
    assert made[EMBEDDING].reason == "of another size in the fine-tune"
    assert any("stays the base's" in finding.text for finding in findings(WHISPER, tuned))


def test_another_width_is_no_resizing() -> None:
    wider = build("Whisper", "ForConditionalGeneration", d_model=64).state_dict()
    assert any("other shapes" in finding.text for finding in findings(WHISPER, wider))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("keep_head", [False, True])
def test_common_rows_are_mixed_in_two_types_too(
    dtypes: tuple[torch.dtype, torch.dtype], keep_head: bool, tmp_path: Path
) -> None:
    models = [WHISPER, resized(EMBEDDING, 63)]
    for name, model, dtype in zip(("base", "tuned"), models, dtypes, strict=True):
        kept = {n: t.to(dtype) for n, t in model.items() if n != "proj_out.weight"}
        save_file(kept, tmp_path / f"{name}.safetensors")
    pair = [tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"]
    merge(*pair, tmp_path / "out", Recipe(keep_head=keep_head), options=MergeOptions(fsync=False))
    merged = load_file(tmp_path / "out/model.safetensors")[EMBEDDING]
    ours, theirs = (load_file(path)[EMBEDDING].double() for path in pair)
    torch.testing.assert_close(merged[:60], (ours[:60] + 0.25 * (theirs[:60] - ours[:60])).to(merged.dtype))
    assert torch.equal(merged[60:].double(), theirs[60:] if keep_head else ours[60:])


@pytest.mark.parametrize("keep_head", [False, True])
def test_a_layer_of_another_size_with_its_bias_stays_the_owners(keep_head: bool) -> None:
    model = build("Hubert").state_dict()
    layer = {"fc.weight": torch.randn(50, 32), "fc.bias": torch.randn(50)}
    other = {"fc.weight": torch.randn(70, 32), "fc.bias": torch.randn(70)}
    told = findings(model | layer, moved(model) | other, keep_head=keep_head)
    assert [finding.level for finding in told] == [Level.WARNING] * 2
    assert all("from 50 to 70 and stays" in finding.text for finding in told)
