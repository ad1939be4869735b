"""Task arithmetic and Model Stock give what float64 gives, from files and in memory, and the same bytes again."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from float64 import differences, moved
from models import build, checkpoint_of
from options import UNSYNCED
from safetensors.torch import load_file, save_file

from speechft_merge import MergeOptions, MergeResult, Recipe, merge, merge_state_dicts, verify
from speechft_merge.errors import MismatchError, UsageError
from speechft_merge.executor.device_buffers import DeviceBuffers
from speechft_merge.plan.operations import Copy
from speechft_merge.plan.plan import make_plan
from speechft_merge.record.identity import FORMAT, identify

if TYPE_CHECKING:
    from conftest import Run

PAIR = Path(__file__).parents[1] / "examples/pair"
STOCK = Recipe(method="model-stock")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base() -> Tensors:
    return {name: tensor.float() for name, tensor in load_file(PAIR / "base/model.safetensors").items()}


@pytest.fixture(scope="module")
def others(base: Tensors) -> list[Tensors]:
    """Fine-tunes that moved in part in one direction."""
    shared = moved(base, 1)
    return [moved(shared, seed) for seed in (2, 3, 4)]


@pytest.fixture
def files(base: Tensors, others: list[Tensors], tmp_path: Path) -> list[str]:
    for name, tensors in zip("zabc", (base, *others), strict=True):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return [str(tmp_path / name) for name in "zabc"]


def written(files: list[str], recipe: Recipe, folder: str = "out", **options: Any) -> tuple[Tensors, MergeResult]:
    output = Path(files[0]).parent / folder
    result = merge(files[0], files[1:], output, recipe, options=MergeOptions(fsync=False, **options))
    return load_file(output / "model.safetensors"), result


def same_bytes(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


def ratio(deltas: list[torch.Tensor]) -> float:
    """Model Stock's, by its paper; 0 where it is negative."""
    flat = [delta.reshape(-1) for delta in deltas]
    pairs = [float(torch.dot(a, b) / (a.norm() * b.norm())) for a, b in itertools.combinations(flat, 2)]
    mean = max(0.0, sum(pairs) / len(pairs))
    return len(flat) * mean / (1 + (len(flat) - 1) * mean)


def steps(found: Tensors, wanted: Tensors) -> float:
    """By how many steps of float32 the worst element is off: a sum of three shares is rounded several times."""
    return max(differences(found, wanted).values(), default=0)


def by_hand(base: Tensors, others: list[Tensors], weights: list[float] | None) -> Tensors:
    """Task arithmetic by these weights, or Model Stock, in float64."""
    merged = {}
    for name, tensor in base.items():
        deltas = [other[name].double() - tensor.double() for other in others]
        shares = weights or [ratio(deltas) / len(deltas)] * len(deltas)
        merged[name] = tensor.double() + sum(w * delta for w, delta in zip(shares, deltas, strict=True))
    return merged


# what comes out
@pytest.mark.parametrize("weights", [(0.7, -0.4, 1.5), (-1.0, -1.0, 1.0), ()])
def test_task_arithmetic_is_the_sum_in_float64(
    weights: tuple[float, ...], base: Tensors, others: list[Tensors], files: list[str]
) -> None:
    recipe = Recipe(method="task-arithmetic", weight=weights)
    expected = by_hand(base, others, [*(weights or (1.0, 1.0, 1.0))])
    merged = written(files, recipe)[0]
    assert steps(merged, expected) < 4
    assert same_bytes(merged, merge_state_dicts(base, others, recipe))


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock_is_that_of_its_paper_in_float64(
    count: int, base: Tensors, others: list[Tensors], files: list[str]
) -> None:
    merged, result = written(files[: count + 1], STOCK)
    assert steps(merged, by_hand(base, others[:count], None)) < 4
    assert same_bytes(merged, merge_state_dicts(base, others[:count], STOCK))
    ratios = {
        name: ratio([other[name].double() - tensor.double() for other in others[:count]])
        for name, tensor in base.items()
    }
    assert {name: drift.ratio for name, drift in result.drifts.items()} == pytest.approx(ratios)
    assert all(0 <= layer.alpha_min <= layer.alpha_max < 1 for layer in result.manifest.layers if layer.alpha_max)
    assert max(layer.alpha_max or 0 for layer in result.manifest.layers) == pytest.approx(max(ratios.values()))


def test_alpha_and_its_rules_scale_what_a_method_makes(base: Tensors, others: list[Tensors]) -> None:
    rules = "layers=0.5"
    for recipe, weights in ((STOCK, None), (Recipe(method="task-arithmetic", weight=(1, -2, 1)), [1.0, -2.0, 1.0])):
        scaled = Recipe(0, (rules,), recipe.weight, method=recipe.method)  # type: ignore[arg-type]
        whole, merged = by_hand(base, others, weights), merge_state_dicts(base, others, scaled)
        in_layers = {name for name in base if ".layers." in name}
        halved = {n: base[n].double() + (n in in_layers) * 0.5 * (whole[n] - base[n].double()) for n in base}
        assert steps(merged, halved) < 4
        assert 0 < len(in_layers) < len(base)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
def test_a_coefficient_of_a_single_finetune_is_an_alpha(alpha: float, dtype: torch.dtype, base: Tensors,
                                                        others: list[Tensors]) -> None:  # fmt: skip
    sides = [{name: tensor.to(dtype) for name, tensor in model.items()} for model in (base, others[0])]
    arithmetic = Recipe(1 if alpha else 0, weight=(alpha or 1,), method="task-arithmetic")
    assert same_bytes(merge_state_dicts(*sides, arithmetic), merge_state_dicts(*sides, Recipe(alpha)))


@pytest.mark.parametrize("coefficient", [-1.5, -0.5, 2.0])
def test_a_coefficient_beyond_the_ends_needs_no_leave(coefficient: float, base: Tensors, others: list[Tensors]) -> None:
    found = merge_state_dicts(base, others[0], Recipe(weight=(coefficient,), method="task-arithmetic"))
    assert same_bytes(found, merge_state_dicts(base, others[0], Recipe(coefficient, extrapolate=True)))
    with pytest.raises(UsageError, match="extrapolate"):
        Recipe(coefficient, method="task-arithmetic")


@pytest.mark.parametrize("dtype", FLOATS)
def test_finetunes_that_point_apart_leave_the_base_to_the_bit(dtype: torch.dtype) -> None:
    base = torch.tensor([-0.0, 0.0, 1.0, 2.0] * 20, dtype=dtype)
    delta = torch.arange(80).to(dtype) / 64
    for pair in ((base + delta, base - delta), (base, base + delta), (base, base)):
        merged = merge_state_dicts({"encoder.w": base}, [{"encoder.w": one} for one in pair], STOCK)
        assert same_bytes(merged, {"encoder.w": base})


def folded(state: Tensors) -> torch.Tensor:
    """The kernel of a model that has it in one tensor or in two."""
    conv = "encoder.pos_conv_embed.conv."
    if f"{conv}weight" in state:
        return state[f"{conv}weight"]
    g, v = (state[f"{conv}parametrizations.weight.original{i}"] for i in (0, 1))
    return v * g / v.norm(dim=(0, 1), keepdim=True)


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_kernel_folded_on_one_side_is_mixed_by_its_ratio(side: str) -> None:
    models = {"base": build("Hubert"), "finetuned": build("Hubert"), "other": build("Hubert")}
    shared = moved(models["base"].state_dict(), 1)
    models["finetuned"].load_state_dict(moved(shared, 2))
    models["other"].load_state_dict(moved(shared, 3))
    plain = merge_state_dicts(models["base"], [models["finetuned"], models["other"]], STOCK)
    torch.nn.utils.parametrize.remove_parametrizations(models[side].encoder.pos_conv_embed.conv, "weight")
    merged = merge_state_dicts(models["base"], [models["finetuned"], models["other"]], STOCK)
    if side == "finetuned":  # the base has two parts: the norms are those of the mixed kernel
        g, v = (merged[f"encoder.pos_conv_embed.conv.parametrizations.weight.original{i}"] for i in (0, 1))
        assert torch.allclose(g, v.norm(dim=(0, 1), keepdim=True), rtol=1e-5)
    else:
        name = "encoder.pos_conv_embed.conv.weight"
        sides = [models[which].state_dict() for which in ("base", "finetuned", "other")]
        kernels = {name: folded(sides[0]).double()}
        expected = by_hand(kernels, [{name: folded(state)} for state in sides[1:]], None)
        assert torch.allclose(merged[name].double(), expected[name], rtol=1e-4, atol=1e-6)
    others = {name: t for name, t in merged.items() if "pos_conv" not in name}
    assert same_bytes(others, {name: plain[name] for name in others})


# the same bytes again
def test_neither_threads_nor_chunks_nor_device_leave_a_trace(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechft_merge.executor.chunk.BLOCK", 256)
    monkeypatch.setattr("speechft_merge.plan.stock.BLOCK", 256)
    found = [written(files, STOCK, "whole", workers=1)]
    for chunk, workers in ((1 << 10, 1), (1 << 10, 4), (1 << 12, 2)):
        monkeypatch.setattr("speechft_merge.executor.chunk.CHUNK", chunk)
        found.append(written(files, STOCK, f"{chunk}-{workers}", workers=workers))
    monkeypatch.setattr(
        "speechft_merge.executor.executor._make_buffers",
        lambda inputs, _: DeviceBuffers(inputs, 1 << 11, torch.device("cpu")),
    )
    found.append(written(files, STOCK, "torch", workers=2))
    assert all(same_bytes(found[0][0], tensors) for tensors, _ in found)
    ratios = [{name: drift.ratio for name, drift in result.drifts.items()} for _, result in found]
    assert all(one == ratios[0] for one in ratios)


@pytest.mark.parametrize("recipe", [STOCK, Recipe(weight=(2, -1, 0.5), method="task-arithmetic")])
def test_a_merge_by_any_method_is_verified_from_its_manifest(recipe: Recipe, files: list[str]) -> None:
    _, result = written(files, recipe)
    assert result.manifest.recipe["method"] == recipe.method
    assert verify(result.output).differences == ()


def test_a_mean_is_known_by_the_name_that_it_had_before_there_were_other_keys() -> None:
    keys = ("alpha", "layer_alpha", "weight", "dtype", "format", "keep_head", "extrapolate")
    before = {
        "format": FORMAT, "recipe": {key: Recipe().to_json()[key] for key in keys},
        "inputs": [], "files": "", "companions": {},
    }  # fmt: skip
    assert identify(Recipe(), [], "", {}) == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
    assert identify(Recipe(1.0), [], "", {}) != identify(Recipe(method="task-arithmetic"), [], "", {})


# what is refused
def test_what_does_not_go_with_a_method_is_refused(base: Tensors, others: list[Tensors]) -> None:
    with pytest.raises(UsageError, match="two or more fine-tunes"):
        merge_state_dicts(base, others[0], STOCK)
    with pytest.raises(UsageError, match="takes no weights"):
        Recipe(weight=(1, 1), method="model-stock")
    with pytest.raises(UsageError, match="2 weights for 3"):
        merge_state_dicts(base, others, Recipe(weight=(1, 1), method="task-arithmetic"))
    with pytest.raises(UsageError, match="other than 0"):
        Recipe(weight=(1, 0), method="task-arithmetic")
    with pytest.raises(UsageError, match=r"'ties' is unknown"):
        Recipe(method="ties")


@pytest.mark.parametrize("recipe", [STOCK, Recipe(weight=(2, -1, 0.5), method="task-arithmetic")])
@pytest.mark.parametrize("which", [0, 1, 3])
def test_a_number_that_is_not_finite_is_named(recipe: Recipe, which: int, files: list[str]) -> None:
    broken = load_file(Path(files[which]) / "model.safetensors")
    name = next(name for name, tensor in broken.items() if tensor.dim() == 2)
    broken[name][1, 2] = torch.inf
    save_file(broken, Path(files[which]) / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match="holds inf"):
        written(files, recipe)


def test_a_sum_that_does_not_fit_its_type_is_refused(tmp_path: Path) -> None:
    for name, value in (("z", 40000.0), ("a", -10000.0), ("b", -10001.0)):
        (tmp_path / name).mkdir()
        save_file({"encoder.w": torch.full((64, 64), value).half()}, tmp_path / name / "model.safetensors")
    recipe = Recipe(weight=(-1, 0.25), method="task-arithmetic")
    with pytest.raises(MismatchError, match="does not fit float16"):
        merge(
            tmp_path / "z", [tmp_path / "a", tmp_path / "b"], tmp_path / "out", recipe,
            options=MergeOptions(fsync=False, allow_unrelated=True),
        )  # fmt: skip


# a missing tensor
def test_a_finetune_that_has_a_tensor_alone_is_taken_as_it_is_at_coefficient_one() -> None:
    torch.manual_seed(0)
    base = {"encoder.w": torch.randn(8, 8), "encoder.v": torch.randn(8)}
    one, two = moved(base, 1), moved({"encoder.w": base["encoder.w"]}, 2)
    plan = make_plan(checkpoint_of(base), [checkpoint_of(one), checkpoint_of(two)], Recipe(method="task-arithmetic"))
    (alone,) = [tensor for tensor in plan.tensors if tensor.name == "encoder.v"]
    assert isinstance(alone.at(0).operation, Copy)
    assert len(alone.inputs) == 1


# the command line
def test_a_merge_of_mergekits_needs_no_models_on_the_command_line(files: list[str], run: Run, tmp_path: Path) -> None:
    entries = [
        {"model": path, "parameters": {"weight": weight}} for path, weight in zip(files, (1, 2, 4, 1), strict=True)
    ]
    (tmp_path / "merge.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": entries}))
    assert run("--recipe", tmp_path / "merge.yml", "-o", tmp_path / "out", "--no-fsync").code == 0
    expected = merge(files[0], files[1:], tmp_path / "mean", Recipe(7 / 8, weight=(2, 4, 1)), options=UNSYNCED)
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", expected.output))
    assert steps(found, {name: tensor.double() for name, tensor in wanted.items()}) < 4
    both = run(*files, "--recipe", tmp_path / "merge.yml")
    assert (both.code, "so does the command line" in both.err) == (2, True)


def test_the_command_line_says_by_which_method(files: list[str], run: Run, tmp_path: Path) -> None:
    assert run(*files, "--method", "model-stock", "-o", tmp_path / "stock", "--no-fsync", "--verify").code == 0
    assert "Model Stock" in (tmp_path / "stock/README.md").read_text()
    arithmetic = ["--method", "task-arithmetic", "--weight", "1", "--weight=-0.5", "--weight", "0.3"]
    assert run(*files, *arithmetic, "-o", tmp_path / "sum", "--no-fsync").code == 0
    assert "weights 1, -0.5, 0.3" in (tmp_path / "sum/README.md").read_text()
    assert run(*files[:2], "--method", "model-stock").code == 2
    assert run(*files, "--method", "ties").code == 2
