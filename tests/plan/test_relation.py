"""Whether two models belong together, and what a merge does when they do not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, checkpoint_of, fine_tune
from options import UNSYNCED
from safetensors.torch import save_file

from speechft_merge import MergeOptions, Recipe, merge, open_checkpoint, open_merge
from speechft_merge.errors import MismatchError
from speechft_merge.plan.evidence import LEAST_COSINE, LEAST_ELEMENTS, SAMPLED_ELEMENTS, SAMPLED_TENSORS
from speechft_merge.plan.plan import make_plan
from speechft_merge.plan.relation import Relation, measure_relation
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.record.identity import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Tensors = dict[str, torch.Tensor]

FORCED = MergeOptions(fsync=False, allow_unrelated=True)


def weights(seed: int, layers: int = 3, size: int = 64, centre: float = 0.0) -> Tensors:
    torch.manual_seed(seed)
    return {
        f"encoder.layers.{layer}.{name}": torch.randn(size, *rest) * 0.1 + centre
        for layer in range(layers)
        for name, rest in (("fc.weight", (size,)), ("fc.bias", ()), ("norm.weight", ()))
    }


def moved(base: Mapping[str, torch.Tensor], share: float, seed: int = 1) -> Tensors:
    """Each tensor moved by noise of `share` times its own size."""
    torch.manual_seed(seed)
    return {name: t + share * float(t.double().std()) * torch.randn(t.shape).to(t.dtype) for name, t in base.items()}


def relation(base: Tensors, *finetuned: Tensors, model: int = 0, rule: str | None = None) -> Relation:
    recipe = Recipe(layer_alpha=(parse_rule(rule),) if rule else ())
    plan = make_plan(checkpoint_of(base), [checkpoint_of(tensors) for tensors in finetuned], recipe)
    return measure_relation(plan, model)


# related or not
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 1.0])
def test_a_finetune_is_related_however_far_it_went(share: float) -> None:
    found = relation(weights(0), moved(weights(0), share))
    assert not found.unrelated
    assert found.median == pytest.approx(1 / math.sqrt(1 + share**2), abs=0.05)


def test_an_identical_model_has_a_cosine_of_one() -> None:
    assert relation(weights(0), weights(0)).median == pytest.approx(1, abs=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(1, 1 << 30), centre=st.sampled_from([0.0, 0.5, -3.0]))
def test_independent_weights_are_unrelated_even_with_a_common_mean(seed: int, centre: float) -> None:
    found = relation(weights(0, centre=centre), weights(seed, centre=centre))
    assert found.median is not None
    assert abs(found.median) < LEAST_COSINE
    assert found.unrelated


def test_a_frozen_part_does_not_hide_that_the_rest_is_foreign() -> None:
    base, other = weights(0, layers=9), weights(1, layers=9)
    same = {name: base[name] for name in base if name.startswith(("encoder.layers.0", "encoder.layers.1"))}
    assert relation(base, other | same).unrelated


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_element_type_does_not_matter(dtype: torch.dtype) -> None:
    base = weights(0)
    assert not relation(base, {n: t.to(dtype) for n, t in moved(base, 0.1).items()}).unrelated
    assert relation(base, {n: t.to(dtype) for n, t in weights(1).items()}).unrelated


def test_each_finetune_is_measured_on_its_own() -> None:
    base = weights(0)
    both = moved(base, 0.1), weights(1)
    assert not relation(base, *both, model=0).unrelated
    assert relation(base, *both, model=1).unrelated


def test_matrices_are_measured_one_by_one() -> None:
    found = relation(weights(0), moved(weights(0), 0.1))
    assert set(found.cosines) == {f"encoder.layers.{i}.fc.weight" for i in range(3)}
    assert all(0.98 < cosine <= 1 for cosine in found.cosines.values())


# samples
def test_small_tensors_norms_and_biases_say_nothing() -> None:
    small = {"encoder.layers.0.norm.weight": torch.ones(4096), "encoder.layers.0.w": torch.randn(8, 8)}
    small["encoder.layers.0.conv.weight_g"] = torch.randn(1, 1, 4096)
    found = relation(small, {name: torch.randn_like(tensor) for name, tensor in small.items()})
    assert found == Relation({})
    assert found.median is None
    assert not found.unrelated


@pytest.mark.parametrize(("elements", "told"), [(LEAST_ELEMENTS - 2, False), (LEAST_ELEMENTS, True)])
def test_a_matrix_counts_from_some_size_on(elements: int, told: bool) -> None:
    base, other = ({"encoder.w": torch.randn(2, elements // 2)} for _ in range(2))
    assert (relation(base, other).median is not None) is told


def test_constant_tensors_are_left_out() -> None:
    base = weights(0) | {"encoder.table": torch.ones(64, 64)}
    assert "encoder.table" not in relation(base, base).cosines


def test_what_is_not_interpolated_is_not_asked() -> None:
    base, other = weights(0), moved(weights(0), 0.1)
    foreign = weights(1)["encoder.layers.2.fc.weight"]
    found = relation(base, other | {"encoder.layers.2.fc.weight": foreign}, rule="2=0")
    assert "encoder.layers.2.fc.weight" not in found.cosines


def counting(read: Callable[[int, int], bytes], reads: list[int]) -> Callable[[int, int], bytes]:
    def counted(offset: int, length: int) -> bytes:
        reads.append(length)
        return read(offset, length)

    return counted


def test_few_tensors_are_read_and_little_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    base = weights(0, layers=100, size=80)
    opened = [checkpoint_of(base), checkpoint_of(moved(base, 0.1))]
    reads: list[int] = []
    for checkpoint in opened:
        monkeypatch.setattr(checkpoint.sources[0], "read", counting(checkpoint.sources[0].read, reads))
    found = measure_relation(make_plan(opened[0], opened[1:], Recipe()), 0)
    assert len(found.cosines) == SAMPLED_TENSORS
    assert len(reads) == 2 * SAMPLED_TENSORS
    assert max(reads) == SAMPLED_ELEMENTS * 4


# what a merge does with it
def write(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_two_models_of_different_seeds_are_refused_and_allow_unrelated_merges_with_a_warning(tmp_path: Path) -> None:
    base = write(tmp_path / "base", build("Hubert", seed=0))
    other = write(tmp_path / "other", build("Hubert", "ForCTC", seed=1))
    with pytest.raises(MismatchError, match=r"is not a fine-tune of .*cosine.*--allow-unrelated"):
        merge(base, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = merge(base, other, tmp_path / "out", options=FORCED)
    (warning,) = result.findings
    assert "is not a fine-tune of" in warning.text
    assert "--allow-unrelated" in warning.text


def test_a_finetune_passes_without_a_word(tmp_path: Path) -> None:
    model = build("Hubert")
    base, other = write(tmp_path / "base", model), write(tmp_path / "other", fine_tune(model, "Hubert", "ForCTC"))
    assert merge(base, other, tmp_path / "out", options=UNSYNCED).findings == ()


def test_an_identical_model_merges_to_the_base_with_a_warning(tmp_path: Path) -> None:
    model = build("Hubert")
    base, other = write(tmp_path / "base", model), write(tmp_path / "other", model)
    result = merge(base, other, tmp_path / "out", options=UNSYNCED)
    (warning,) = result.findings
    assert "does not differ from the base anywhere" in warning.text
    assert list(result.manifest.identical) == sorted(model.state_dict())
    merged, original = (open_checkpoint(path) for path in (str(tmp_path / "out"), base))
    assert fingerprint(merged) == fingerprint(original)


def test_a_finetune_with_fewer_layers_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    base, part = weights(0, layers=9), moved(weights(0, layers=9), 0.1)
    save_file(base, tmp_path / "base.safetensors")
    save_file({n: t for n, t in part.items() if n < "encoder.layers.4"}, tmp_path / "part.safetensors")
    paths = str(tmp_path / "base.safetensors"), [str(tmp_path / "part.safetensors")]
    with pytest.raises(
        MismatchError, match=r"has 9 layers in the encoder.*has 4;.*layers 4-8 would be the base's.*--allow-partial"
    ):
        open_merge(*paths)
    with open_merge(*paths, options=MergeOptions(allow_partial=True)) as opened:
        warning = opened.findings[0]
    assert "layers 4-8" in warning.text
