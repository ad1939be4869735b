"""Fine-tunes by peft: whole after `merge_and_unload`, refused while their weights lie in adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import differences, interpolate
from loaders import toolkit
from models import build, model_class
from options import UNSYNCED

from speechft_merge import Recipe, merge
from speechft_merge.errors import CheckpointError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
LINEAR = r".*layers.*(proj|dense|fc\d)"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 2, **QV}),
    "LoRA of every linear layer": ("LoraConfig", {"r": 2, "target_modules": LINEAR}),
    "LoRA with biases": ("LoraConfig", {"r": 2, "bias": "all", **QV}),
    "LoRA with ranks by pattern": ("LoraConfig", {"r": 2, "rank_pattern": {r"encoder.*0.*q_proj": 4}, **QV}),
    "LoRA with a module trained whole": ("LoraConfig", {"r": 2, "modules_to_save": ["layer_norm"], **QV}),
    "LoRA in one block": ("LoraConfig", {"r": 2, "layers_to_transform": [0], "layers_pattern": "layers", **QV}),
    "rsLoRA": ("LoraConfig", {"r": 2, "use_rslora": True, **QV}),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True, **QV}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 2, "target_r": 1, "total_step": 10, **QV}),
    "IA3": ("IA3Config", {"target_modules": ["k_proj", "v_proj"], "feedforward_modules": []}),
    "VeRA": ("VeraConfig", {"r": 2, **QV}),
    "LoHa": ("LoHaConfig", {"r": 2, **QV}),
    "LoKr": ("LoKrConfig", {"r": 2, **QV}),
    "OFT": ("OFTConfig", {"oft_block_size": 2, **QV}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 2, **QV}),
    "HRA": ("HRAConfig", {"r": 2, **QV}),
    "layer norms": ("LNTuningConfig", {"target_modules": ["layer_norm"]}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 4, **QV}),
}
TASKS = {"Wav2Vec2": "ForCTC", "Whisper": "ForConditionalGeneration"}
FAMILIES = pytest.mark.parametrize("family", TASKS)
ADAPTERS = pytest.mark.parametrize("kind", KINDS)


def adapted(family: str, kind: str) -> Any:
    """A model with an adapter whose every parameter has moved, as after training."""
    name, settings = KINDS[kind]
    peft = toolkit("peft")
    model = peft.get_peft_model(build(family, TASKS[family]), getattr(peft, name)(**settings))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for family, task in TASKS.items():
        build(family, task).save_pretrained(folder / family)
    return {family: folder / family for family in TASKS}


def assert_refused(base: Path, adapted: Path) -> None:
    """As the fine-tune, whichever head is kept, and as the base."""
    out = adapted.parent / "out"
    for pair, keep_head in (((base, adapted), False), ((base, adapted), True), ((adapted, base), False)):
        with pytest.raises((CheckpointError, NotFoundError), match=r"(?i)adapter|LoRA|merge_and_unload"):
            merge(*map(str, pair), out, Recipe(keep_head=keep_head), options=UNSYNCED)
    assert not out.exists()


@FAMILIES
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoRA of every linear layer", "IA3", "VeRA"])
def test_what_peft_has_merged_and_unloaded_is_a_whole_model(
    family: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    tuned = adapted(family, kind).merge_and_unload()
    tuned.save_pretrained(tmp_path / "tuned")
    merge(str(bases[family]), str(tmp_path / "tuned"), tmp_path / "out", options=UNSYNCED)
    loader = model_class(family, TASKS[family])
    base, found = (loader.from_pretrained(path).state_dict() for path in (bases[family], tmp_path / "out"))
    body = {name: tensor for name, tensor in tuned.state_dict().items() if not name.startswith("lm_head.")}
    wanted = interpolate(base, body)
    assert differences(found, wanted) == {}
    assert any(not torch.equal(base[name], found[name]) for name in base)


@FAMILIES
@ADAPTERS
def test_a_state_dict_with_adapters_within_is_refused(
    family: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Of the wrapped model, and of the model inside of the wrapper."""
    model = adapted(family, kind)
    for name, weights in (("wrapped.pt", model.state_dict()), ("inner.pt", model.base_model.model.state_dict())):
        torch.save(weights, tmp_path / name)
        assert_refused(bases[family], tmp_path / name)


@FAMILIES
@ADAPTERS
@pytest.mark.parametrize("form", ["folder", "file", "pickle"])
def test_an_adapter_alone_is_refused(family: str, kind: str, form: str, bases: dict[str, Path], tmp_path: Path) -> None:
    adapted(family, kind).save_pretrained(tmp_path / "adapter", safe_serialization=form != "pickle")
    name = {"folder": "adapter", "file": "adapter/adapter_model.safetensors", "pickle": "adapter/adapter_model.bin"}
    assert_refused(bases[family], tmp_path / name[form])
