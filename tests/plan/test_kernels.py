"""A kernel in two parts (weight norm) meets a folded one: v * g / ||v|| is mixed, in the form of the owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from models import build
from plan_pairs import moved
from safetensors.torch import load_file, save_file

from speechft_merge import MergeOptions, Recipe, merge
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from pathlib import Path

STEM = "encoder.pos_conv_embed.conv."
NEW = (f"{STEM}parametrizations.weight.original0", f"{STEM}parametrizations.weight.original1")
OLD = (f"{STEM}weight_g", f"{STEM}weight_v")
HUBERT = build("Hubert").state_dict()


def kernel(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    if f"{STEM}weight" in tensors:
        return tensors[f"{STEM}weight"].double()
    g, v = (tensors[name].double() for name in (NEW if NEW[0] in tensors else OLD))
    return torch.ops.aten._weight_norm_interface(v, g, 2)[0]


def in_form(tensors: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    g, v = tensors[NEW[0]], tensors[NEW[1]]
    rest = {name: tensor for name, tensor in tensors.items() if name not in NEW}
    match form:
        case "old":
            return rest | dict(zip(OLD, (g, v), strict=True))
        case "folded":
            return rest | {f"{STEM}weight": kernel(tensors).float()}
    return tensors


def merged(ours: str, theirs: str, folder: Path, **recipe: object) -> tuple[dict[str, torch.Tensor], ...]:
    base, tuned = in_form(HUBERT, ours), in_form(moved(HUBERT), theirs)
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    pair = folder / "base.safetensors", folder / "tuned.safetensors"
    result = merge(*pair, folder / "out", Recipe(**recipe), options=MergeOptions(fsync=False))  # type: ignore[arg-type]
    assert [finding for finding in result.findings if "config.json" not in finding.text] == []
    return base, tuned, load_file(folder / "out/model.safetensors")


@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("new", "folded"), ("old", "folded"), ("folded", "new"), ("folded", "old")]
)
def test_the_kernel_itself_is_mixed_and_written_as_the_owner_has_it(
    ours: str, theirs: str, keep_head: bool, tmp_path: Path
) -> None:
    base, tuned, out = merged(ours, theirs, tmp_path, keep_head=keep_head)
    assert out.keys() == (tuned if keep_head else base).keys()
    expected = kernel(base) + 0.25 * (kernel(tuned) - kernel(base))
    torch.testing.assert_close(kernel(out), expected, atol=1e-7, rtol=1e-6)
    assert all(out[name].shape == tensor.shape for name, tensor in (tuned if keep_head else base).items())


def test_at_alpha_0_both_parts_stay_the_bases_bit_for_bit(tmp_path: Path) -> None:
    base, _, out = merged("new", "folded", tmp_path, layer_alpha=(parse_rule("pos_conv=0"),))
    assert all(torch.equal(out[name], base[name]) for name in NEW)


def test_parts_of_two_spellings_are_mixed_as_they_are(tmp_path: Path) -> None:
    base, tuned, out = merged("new", "old", tmp_path)
    for new, old in zip(NEW, OLD, strict=True):
        torch.testing.assert_close(out[new], base[new] + 0.25 * (tuned[old] - base[new]))
