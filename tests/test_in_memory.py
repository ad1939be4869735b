"""Loaded models merge to the bytes that their files would, also in place into a live module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import moved
from models import CLASSES, build
from options import UNSYNCED
from safetensors.torch import load_file, save_file

from speechft_merge import LiveMerge, Recipe, SpeechFTMergeError, interpolate_, merge, merge_state_dicts

if TYPE_CHECKING:
    from collections.abc import Mapping

PAIR = Path(__file__).parents[1] / "examples/pair"
ALPHAS = (0.0, 0.25, 0.5, 0.7, 1.0)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base() -> Tensors:
    return load_file(PAIR / "base/model.safetensors")


@pytest.fixture(scope="module")
def finetuned(base: Tensors) -> Tensors:
    return moved(base)


def from_files(base: Tensors, finetuned: Tensors, folder: Path, recipe: Recipe) -> Tensors:
    """The same merge by way of files."""
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    merge(folder / "base", folder / "finetuned", folder / "out", recipe, options=UNSYNCED)
    return load_file(folder / "out/model.safetensors")


def same_bytes(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()

    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and raw(one[name]) == raw(other[name])
        for name in one
    )


class Live(torch.nn.Module):
    """A module with given weights under given names."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def state_dict(self, *_: Any, **__: Any) -> Any:
        return dict(self.tensors)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(alpha=0.7, dtype="float32"), Recipe(layer_alpha=("0-2=0.1:0.5",))])  # type: ignore[arg-type]
def test_a_merged_state_dict_has_the_bytes_of_the_merged_file(
    base: Tensors, finetuned: Tensors, recipe: Recipe, tmp_path: Path
) -> None:
    assert same_bytes(merge_state_dicts(base, finetuned, recipe), from_files(base, finetuned, tmp_path, recipe))


@pytest.mark.parametrize("of_finetuned", FLOATS)
@pytest.mark.parametrize("of_base", FLOATS)
def test_every_mix_of_types_has_the_bytes_of_the_merged_file(
    of_base: torch.dtype, of_finetuned: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = torch.randn(40, 40, dtype=torch.float64)
    base = {"encoder.layers.0.weight": weights.to(of_base)}
    finetuned = {
        "encoder.layers.0.weight": (weights + 0.1 * torch.randn(40, 40)).to(of_finetuned),
        "steps": torch.ones(3),
    }
    for alpha in (0.3, 0.8):
        recipe = Recipe(alpha=alpha)
        expected = from_files(base, finetuned, tmp_path / str(alpha), recipe)
        assert same_bytes(merge_state_dicts(base, finetuned, recipe), expected)
        live = Live(base)
        LiveMerge(live, base, finetuned).set(alpha)
        assert same_bytes(live.tensors, expected)


@pytest.mark.parametrize("family", CLASSES)
def test_a_model_of_every_family_is_merged_in_place(family: str, tmp_path: Path) -> None:
    model = build(family, "Model")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetuned = moved(base)
    interpolate_(model, base, finetuned, 0.25)
    assert same_bytes(model.state_dict(), merge_state_dicts(base, finetuned))
    assert not same_bytes(model.state_dict(), base)


def test_one_alpha_after_the_other_leaves_no_trace(base: Tensors, finetuned: Tensors) -> None:
    module = Live(base)
    live = LiveMerge(module, base, finetuned)
    for alpha in (*ALPHAS, *reversed(ALPHAS)):
        live.set(alpha)
        assert same_bytes(module.tensors, merge_state_dicts(base, finetuned, Recipe(alpha=alpha)))
    live.set(0.5, ["0-2=0.1", "cnn=0"])
    recipe = Recipe(alpha=0.5, layer_alpha=("0-2=0.1", "cnn=0"))  # type: ignore[arg-type]
    assert same_bytes(module.tensors, merge_state_dicts(base, finetuned, recipe))
    live.set(0)
    assert same_bytes(module.tensors, base)


def test_the_module_may_be_the_finetune_or_the_base(base: Tensors, finetuned: Tensors) -> None:
    expected = merge_state_dicts(base, finetuned, Recipe(alpha=0.6))
    tuned, pretrained = Live(finetuned), Live(base)
    assert interpolate_(tuned, base, tuned, 0.6) is tuned
    assert interpolate_(pretrained, pretrained, finetuned, 0.6) is pretrained
    assert same_bytes(tuned.tensors, expected)
    assert same_bytes(pretrained.tensors, expected)


def test_a_module_of_the_finetuned_class_keeps_its_head(tmp_path: Path) -> None:
    tuned = build("Hubert", "ForCTC")
    base = {
        name.removeprefix("hubert."): t for name, t in moved(tuned.state_dict()).items() if name.startswith("hubert.")
    }
    expected = merge_state_dicts(base, tuned, Recipe(alpha=0.25, keep_head=True))
    head = tuned.lm_head.weight.clone()
    interpolate_(tuned, base, tuned, 0.25)
    assert same_bytes(tuned.state_dict(), expected)
    assert torch.equal(tuned.lm_head.weight, head)


def test_several_finetunes_are_mixed_by_their_weights(base: Tensors, finetuned: Tensors) -> None:
    others = [finetuned, moved(finetuned)]
    module = Live(base)
    LiveMerge(module, base, others, weight=(1, 3)).set(0.4)
    assert same_bytes(module.tensors, merge_state_dicts(base, others, Recipe(alpha=0.4, weight=(1, 3))))


def test_tensors_that_are_one_stay_one(base: Tensors, finetuned: Tensors) -> None:
    name = next(iter(base))
    merged = merge_state_dicts(base | {"copy": base[name]}, finetuned | {"copy": finetuned[name]})
    assert merged["copy"] is merged[name]


def test_a_tensor_in_another_order_of_memory_is_merged(base: Tensors, finetuned: Tensors) -> None:
    turned = {name: t.t().contiguous().t() if t.dim() == 2 else t for name, t in finetuned.items()}
    assert same_bytes(merge_state_dicts(base, turned), merge_state_dicts(base, finetuned))


def test_models_that_do_not_belong_together_are_refused(base: Tensors, finetuned: Tensors) -> None:
    broken = dict(finetuned)
    name = next(name for name, tensor in broken.items() if tensor.dim() == 2)
    broken[name] = broken[name].clone()
    broken[name][0, 0] = torch.nan
    torch.manual_seed(0)
    unrelated = {name: torch.randn(t.shape).to(t.dtype) for name, t in base.items()}
    for wrong, told in ((broken, "nan"), (unrelated, "is not a fine-tune of the base")):
        with pytest.raises(SpeechFTMergeError, match=told):
            merge_state_dicts(base, wrong)
    with pytest.raises(SpeechFTMergeError, match="not finite"):
        LiveMerge(Live(base), base, broken)
    with pytest.raises(SpeechFTMergeError, match="the names of neither model"):
        LiveMerge(torch.nn.Linear(2, 2), base, finetuned)
    with pytest.raises(SpeechFTMergeError, match="cannot be read"):
        merge_state_dicts(base | {name: base[name].to("meta")}, finetuned)
    with pytest.raises(SpeechFTMergeError, match=r"outside of \[0, 1\]|alpha"):
        LiveMerge(Live(base), base, finetuned).set(1.5)
