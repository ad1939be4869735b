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
    with pytest.raises(SpeechFTMergeError, match="the tensors of neither model"):
        LiveMerge(torch.nn.Linear(2, 2), base, finetuned)
    with pytest.raises(SpeechFTMergeError, match="cannot be read"):
        merge_state_dicts(base | {name: base[name].to("meta")}, finetuned)
    with pytest.raises(SpeechFTMergeError, match=r"outside of \[0, 1\]|alpha"):
        LiveMerge(Live(base), base, finetuned).set(1.5)


def folded(module: Any) -> Any:
    """Its weight norm folded into one kernel."""
    torch.nn.utils.parametrize.remove_parametrizations(module.encoder.pos_conv_embed.conv, "weight")
    return module


@pytest.mark.parametrize("which", ["base", "finetuned", "module"])
def test_a_kernel_in_two_parts_on_one_side_is_mixed_at_every_alpha(which: str) -> None:
    """Its norm is computed from the mixed kernel: of what, depends on alpha."""
    sides = {"base": build("Hubert"), "finetuned": build("Hubert"), "module": build("Hubert")}
    sides["finetuned"].load_state_dict(moved(sides["base"].state_dict()))
    for name in {"base": ["base"], "finetuned": ["finetuned"], "module": ["base", "module"]}[which]:
        folded(sides[name])
    keep_head = which == "base"
    live = LiveMerge(sides["module"], sides["base"], sides["finetuned"])
    for alpha in (*ALPHAS, 0.0):
        live.set(alpha)
        recipe = Recipe(alpha=alpha, keep_head=keep_head)
        assert same_bytes(sides["module"].state_dict(), merge_state_dicts(sides["base"], sides["finetuned"], recipe))


def test_a_module_whose_tensors_were_replaced_is_followed() -> None:
    model = build("Hubert")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetuned = moved(base)
    live = LiveMerge(model, base, finetuned)
    model.half()
    live.set(0.7)
    assert same_bytes(model.state_dict(), merge_state_dicts(base, finetuned, Recipe(alpha=0.7, dtype="float16")))
    model.load_state_dict({name: tensor.clone() for name, tensor in base.items()}, assign=True)
    live.set(0.25)
    assert same_bytes(model.state_dict(), merge_state_dicts(base, finetuned))


def test_what_does_not_fit_the_module_is_told(base: Tensors, finetuned: Tensors) -> None:
    name = next(name for name, tensor in base.items() if tensor.dim() == 2)
    large = {key: tensor.float() for key, tensor in base.items()}
    large[name][0, 0] = 1e5
    live = LiveMerge(Live(base), large, moved(large))
    with pytest.raises(SpeechFTMergeError, match="not finite"):
        live.set(0.25)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_ends_are_the_models_bit_for_bit_zeros_with_a_sign_too(dtype: torch.dtype) -> None:
    base = {"encoder.layers.0.weight": torch.tensor([[-1.0, -0.0, 0.0], [1.0, -0.0, 3.0]], dtype=dtype)}
    finetuned = {"encoder.layers.0.weight": torch.tensor([[-0.0, 1.0, -0.0], [-0.0, -0.0, 0.0]], dtype=dtype)}
    module = Live(base)
    live = LiveMerge(module, base, finetuned)
    for alpha, end in ((1.0, finetuned), (0.0, base)):
        live.set(alpha)
        assert same_bytes(module.tensors, end)


def test_models_of_equal_names_and_other_sizes_are_told_apart() -> None:
    tuned, base = build("Hubert", "ForCTC", vocab_size=20), build("Hubert", "ForCTC")
    base.hubert.load_state_dict(moved(tuned.hubert.state_dict()))
    expected = merge_state_dicts(base, tuned, Recipe(alpha=0.25, keep_head=True))
    interpolate_(tuned, base, tuned, 0.25)
    assert same_bytes(tuned.state_dict(), expected)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"model": {}, "step": 3}, "'model' is of type dict"), ("a/path", "given as str"), ({}, "no tensors")],
)
def test_what_is_no_state_dict_is_told(wrong: Any, told: str, base: Tensors) -> None:
    with pytest.raises(SpeechFTMergeError, match=told):
        merge_state_dicts(base, wrong)
