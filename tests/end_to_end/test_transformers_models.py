"""Real classes of transformers, saved by transformers, merged, and loaded by transformers: nothing may be missing.

Every class of every family is merged in `test_families.py`; here are the containers, element types and recipes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import CLASSES, backbone, build, fine_tune, model_class, save_bin, transformers
from options import UNSYNCED
from safetensors.torch import load_file, save_file

from speechft_merge import MergeOptions, Recipe, merge
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Tensors = dict[str, torch.Tensor]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Saved:
    """A model on disk, and what it holds."""

    path: Path
    kind: str
    weights: Mapping[str, torch.Tensor]
    """What the loaded class has, tied weights under all their names."""


class Zoo:
    """Models saved once and used by many tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved: dict[tuple[str, ...], Saved] = {}

    def base(self, family: str, kind: str = "Model") -> Saved:
        if (family, kind) not in self._saved:
            self._saved[family, kind] = self._save(build(family, kind), kind, f"{family}{kind}-base")
        return self._saved[family, kind]

    def finetuned(self, family: str, kind: str, base: str = "Model", seed: int = 1) -> Saved:
        key = (family, kind, base, str(seed))
        if key not in self._saved:
            loaded = model_class(family, base).from_pretrained(self.base(family, base).path)
            self._saved[key] = self._save(fine_tune(loaded, family, kind, seed), kind, "-".join(key))
        return self._saved[key]

    def _save(self, model: Any, kind: str, name: str) -> Saved:
        model.save_pretrained(self.folder / name)
        return Saved(self.folder / name, kind, {n: t.clone() for n, t in model.state_dict().items()})


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def load(family: str, kind: str, path: Path, **options: Any) -> Any:
    """The model, if transformers has nothing at all to remark."""
    model, info = model_class(family, kind).from_pretrained(path, output_loading_info=True, **options)
    assert {key: value for key, value in info.items() if value} == {}
    return model


def three_steps(base: torch.Tensor, finetuned: torch.Tensor, alpha: float = 0.25) -> torch.Tensor:
    return torch.add(base, torch.mul(torch.sub(finetuned, base), alpha))


def expected(family: str, base: Saved, finetuned: Saved, keep_head: bool) -> Tensors:
    """All tensors of the merge, by names as transformers' own classes have them."""
    owner = finetuned if keep_head else base
    result = dict(owner.weights)
    ours, theirs = backbone(family, base.kind), backbone(family, finetuned.kind)
    for name in ours.keys() & theirs.keys():
        a, b = base.weights[ours[name]], finetuned.weights[theirs[name]]
        result[(theirs if keep_head else ours)[name]] = three_steps(a, b)
    if "proj_out.weight" in result:
        result["proj_out.weight"] = result["model.decoder.embed_tokens.weight"]
    return result


def assert_equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def output_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# counters
@pytest.mark.parametrize("keep_head", [False, True])
def test_a_batch_norm_loads_with_the_bases_counter_and_mixed_statistics(keep_head: bool, tmp_path: Path) -> None:
    base = build("Hubert", conv_pos_batch_norm=True)
    norm = "encoder.pos_conv_embed.batch_norm"
    base.get_submodule(norm).num_batches_tracked.fill_(3)
    finetuned = build("Hubert", "ForCTC", conv_pos_batch_norm=True)
    finetuned.hubert.load_state_dict({n: t + 1 if "running" in n else t * 2 for n, t in base.state_dict().items()})
    base.save_pretrained(tmp_path / "base")
    finetuned.save_pretrained(tmp_path / "finetuned")
    merge(
        str(tmp_path / "base"),
        str(tmp_path / "finetuned"),
        tmp_path / "out",
        Recipe(keep_head=keep_head),
        options=UNSYNCED,
    )
    model = load("Hubert", "ForCTC" if keep_head else "Model", tmp_path / "out")
    merged = (model.hubert if keep_head else model).get_submodule(norm)
    assert int(merged.num_batches_tracked) == 3
    assert torch.equal(merged.running_mean, torch.full((32,), 0.25))
    assert torch.equal(merged.running_var, torch.full((32,), 1.25))


# element types
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("keep_head", [False, True])
def test_the_config_tells_the_type_of_the_weights(
    wanted: str, key: str, keep_head: bool, zoo: Zoo, tmp_path: Path
) -> None:
    base, finetuned = zoo.base("Hubert"), zoo.finetuned("Hubert", "ForCTC")
    folders = [_with_config_key(saved.path, tmp_path / str(i), key) for i, saved in enumerate((base, finetuned))]
    recipe = Recipe(dtype=wanted, keep_head=keep_head)
    merge(str(folders[0]), str(folders[1]), tmp_path / "out", recipe, options=UNSYNCED)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config[key] == wanted
    assert {"dtype", "torch_dtype"} & config.keys() == {key}
    model = load("Hubert", "ForCTC" if keep_head else "Model", tmp_path / "out", dtype="auto")
    assert model.dtype == DTYPES[wanted]
    whole = expected("Hubert", base, finetuned, keep_head)
    assert_equal(model.state_dict(), {name: tensor.to(DTYPES[wanted]) for name, tensor in whole.items()})


def _with_config_key(source: Path, folder: Path, key: str) -> Path:
    """A copy of a model whose config names its type as transformers 5 (`dtype`) or 4 (`torch_dtype`) does."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    config[key] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_a_base_in_a_half_type_stays_in_it(stored: str, zoo: Zoo, tmp_path: Path) -> None:
    finetuned = zoo.finetuned("Hubert", "ForCTC")
    half = model_class("Hubert", "Model").from_pretrained(zoo.base("Hubert").path).to(DTYPES[stored])
    half.save_pretrained(tmp_path / "half")
    merge(str(tmp_path / "half"), str(finetuned.path), tmp_path / "out", options=UNSYNCED)
    model = load("Hubert", "Model", tmp_path / "out", dtype="auto")
    wanted = {
        name: three_steps(tensor.float(), finetuned.weights[f"hubert.{name}"]).to(DTYPES[stored])
        for name, tensor in half.state_dict().items()
    }
    assert_equal(model.state_dict(), wanted)


# containers
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2Bert", "Whisper"])
def test_bin_files_give_the_same_bytes_as_safetensors(
    family: str, keep_head: bool, legacy: bool, zoo: Zoo, tmp_path: Path
) -> None:
    base, finetuned = zoo.base(family), zoo.finetuned(family, CLASSES[family][1])
    recipe = Recipe(keep_head=keep_head)
    merge(str(base.path), str(finetuned.path), tmp_path / "out", recipe, options=UNSYNCED)
    folders = []
    for saved in (base, finetuned):
        config = transformers().AutoConfig.from_pretrained(saved.path)
        folder = tmp_path / saved.path.name
        folders.append(save_bin(load_file(saved.path / "model.safetensors"), config, folder, legacy=legacy))
    for i, pair in enumerate([(folders[0], folders[1]), (folders[0], finetuned.path), (base.path, folders[1])]):
        merge(str(pair[0]), str(pair[1]), tmp_path / f"out{i}", recipe, options=UNSYNCED)
        assert output_bytes(tmp_path / f"out{i}") == output_bytes(tmp_path / "out")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_in_the_order_of_the_model_gives_the_same_tensors(legacy: bool, zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("WavLM"), zoo.finetuned("WavLM", "ForCTC")
    config = transformers().AutoConfig.from_pretrained(base.path)
    folder = save_bin(base.weights, config, tmp_path / "bin", legacy=legacy)
    merge(str(folder), str(finetuned.path), tmp_path / "out", options=UNSYNCED)
    assert_equal(load("WavLM", "Model", tmp_path / "out").state_dict(), expected("WavLM", base, finetuned, False))


def test_legacy_names_of_weight_norm_are_kept_and_load(zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Hubert"), zoo.finetuned("Hubert", "ForCTC")
    conv = "encoder.pos_conv_embed.conv"
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): t
        for name, t in base.weights.items()
    }
    folder = save_bin(old, transformers().AutoConfig.from_pretrained(base.path), tmp_path / "old")
    merge(str(folder), str(finetuned.path), tmp_path / "out", options=UNSYNCED)
    assert {f"{conv}.weight_g", f"{conv}.weight_v"} <= load_file(tmp_path / "out" / "model.safetensors").keys()
    assert_equal(load("Hubert", "Model", tmp_path / "out").state_dict(), expected("Hubert", base, finetuned, False))


@pytest.mark.parametrize("size", [1, 20_000, 100_000])
def test_sharded_output_loads(size: int, zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Hubert"), zoo.finetuned("Hubert", "ForCTC")
    merge(str(base.path), str(finetuned.path), tmp_path / "out", options=MergeOptions(fsync=False, max_shard_size=size))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert_equal(load("Hubert", "Model", tmp_path / "out").state_dict(), expected("Hubert", base, finetuned, False))


def test_sharded_input_gives_the_same_tensors(zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Hubert"), zoo.finetuned("Hubert", "ForCTC")
    loaded = model_class("Hubert", "ForCTC").from_pretrained(finetuned.path)
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    for i, path in enumerate((finetuned.path, tmp_path / "sharded")):
        merge(str(base.path), str(path), tmp_path / f"out{i}", options=UNSYNCED)
    assert output_bytes(tmp_path / "out0") == output_bytes(tmp_path / "out1")


# Whisper
@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize("in_bin", [(False, False), (True, False), (False, True), (True, True)])
def test_whispers_output_projection_stays_tied(
    in_bin: tuple[bool, bool], keep_head: bool, zoo: Zoo, tmp_path: Path
) -> None:
    """A `.bin` has the tied tensor under both names, a `.safetensors` under one."""
    kind = "ForConditionalGeneration"
    saved = zoo.base("Whisper", kind), zoo.finetuned("Whisper", kind, kind)
    folders = []
    for one, as_bin in zip(saved, in_bin, strict=True):
        model = model_class("Whisper", kind).from_pretrained(one.path)
        bin_folder = tmp_path / one.path.name
        folders.append(save_bin(model.state_dict(), model.config, bin_folder) if as_bin else one.path)
    merge(str(folders[0]), str(folders[1]), tmp_path / "out", Recipe(keep_head=keep_head), options=UNSYNCED)
    model = load("Whisper", kind, tmp_path / "out")
    assert model.proj_out.weight.data_ptr() == model.model.decoder.embed_tokens.weight.data_ptr()
    assert_equal(model.state_dict(), expected("Whisper", *saved, keep_head))


def test_whispers_decoder_can_be_left_alone(zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Whisper"), zoo.finetuned("Whisper", "ForConditionalGeneration")
    recipe = Recipe(layer_alpha=(parse_rule("decoder=0"),))
    merge(str(base.path), str(finetuned.path), tmp_path / "out", recipe, options=UNSYNCED)
    merged = load("Whisper", "Model", tmp_path / "out").state_dict()
    for name, tensor in base.weights.items():
        other = finetuned.weights[f"model.{name}"]
        assert torch.equal(merged[name], tensor if name.startswith("decoder.") else three_steps(tensor, other)), name


# alphas
@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_alpha_is_the_weight_of_the_finetune(alpha: float, zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Hubert"), zoo.finetuned("Hubert", "ForCTC")
    merge(str(base.path), str(finetuned.path), tmp_path / "out", alpha=alpha, options=UNSYNCED)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        other = finetuned.weights[f"hubert.{name}"]
        exact = base.weights[name].double() + alpha * (other.double() - base.weights[name].double())
        assert torch.allclose(tensor.double(), exact, rtol=0, atol=2**-23 * float(exact.abs().max()))
        assert alpha < 1 or torch.equal(tensor, other)


def test_alpha_zero_is_the_base_to_the_bit(zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Hubert"), zoo.finetuned("Hubert", "ForCTC")
    merge(str(base.path), str(finetuned.path), tmp_path / "out", alpha=0.0, options=UNSYNCED)
    assert_equal(load("Hubert", "Model", tmp_path / "out").state_dict(), base.weights)


def test_several_finetunes_of_several_classes(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.base("Hubert")
    tasks = [zoo.finetuned("Hubert", "ForCTC"), zoo.finetuned("Hubert", "ForSequenceClassification", seed=2)]
    recipe = Recipe(alpha=0.4, weight=(1, 3))
    merge(str(base.path), [str(task.path) for task in tasks], tmp_path / "out", recipe, options=UNSYNCED)
    merged = load("Hubert", "Model", tmp_path / "out").state_dict()
    for name, tensor in base.weights.items():
        first, second = (torch.sub(task.weights[f"hubert.{name}"], tensor) for task in tasks)
        total = torch.add(torch.mul(first, 0.25), torch.mul(second, 0.75))
        assert torch.equal(merged[name], torch.add(tensor, torch.mul(total, 0.4))), name


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_leaves_no_trace(workers: int, zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("Wav2Vec2"), zoo.finetuned("Wav2Vec2", "ForCTC")
    for i, count in enumerate((2, workers)):
        merge(
            str(base.path), str(finetuned.path), tmp_path / f"out{i}", options=MergeOptions(fsync=False, workers=count)
        )
    assert output_bytes(tmp_path / "out0") == output_bytes(tmp_path / "out1")


def test_an_encoder_with_a_prefix_of_another_toolkit_merges(zoo: Zoo, tmp_path: Path) -> None:
    base, finetuned = zoo.base("WavLM"), zoo.finetuned("WavLM", "ForCTC")
    path = tmp_path / "finetuned.safetensors"
    save_file({f"net.tower.{name}": tensor for name, tensor in finetuned.weights.items()}, path)
    merge(str(base.path), str(path), tmp_path / "out", options=UNSYNCED)
    assert_equal(load("WavLM", "Model", tmp_path / "out").state_dict(), expected("WavLM", base, finetuned, False))
