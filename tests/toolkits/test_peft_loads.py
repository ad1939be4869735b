"""Fine-tunes by peft: LoRA is folded into the base as peft does it, other adapters are refused by name."""

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
    "LoRA with alphas by pattern": ("LoraConfig", {"r": 2, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}, **QV}),
    "LoRA with a module trained whole": ("LoraConfig", {"r": 2, "modules_to_save": ["layer_norm"], **QV}),
    "LoRA of convolutions": ("LoraConfig", {"r": 2, "target_modules": r".*(conv_layers\.1\.conv|\.conv1)"}),
    "LoRA in one block": ("LoraConfig", {"r": 2, "layers_to_transform": [0], "layers_pattern": "layers", **QV}),
    "rsLoRA": ("LoraConfig", {"r": 2, "use_rslora": True, **QV}),
    "LoRA of large scale": ("LoraConfig", {"r": 4, "lora_alpha": 64, **QV}),
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
    "LoRA that took from the base": ("LoraConfig", {"r": 2, "init_lora_weights": "olora", **QV}),
}
FOLDED = [kind for kind in KINDS if "LoRA" in kind and kind not in ("AdaLoRA", "LoRA that took from the base")]
OTHERS = [kind for kind in KINDS if kind not in FOLDED]
FORMS = {"folder": "adapter", "file": "adapter/adapter_model.safetensors", "pickle": "adapter/adapter_model.bin"}
TASKS = {"Wav2Vec2": "ForCTC", "Whisper": "ForConditionalGeneration"}
FAMILIES = pytest.mark.parametrize("family", TASKS)
ALIKE = pytest.mark.parametrize("kind", FOLDED)
UNLIKE = pytest.mark.parametrize("kind", OTHERS)


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
@ALIKE
@pytest.mark.parametrize("form", FORMS)
def test_lora_is_folded_as_peft_folds_it(
    family: str, kind: str, form: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """At alpha 0.25 and at alpha 1; peft rounds the product before it scales it and adds it, so it is a step off."""
    model = adapted(family, kind)
    model.save_pretrained(tmp_path / "adapter", safe_serialization=form != "pickle")
    assert_folded(bases[family], tmp_path / FORMS[form], model, family, tmp_path)


@FAMILIES
@ALIKE
@pytest.mark.parametrize("inside", [True, False])
def test_lora_in_a_whole_state_dict_is_folded(
    family: str, kind: str, inside: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Of the wrapped model, or of the model inside of the wrapper; the settings lie beside it."""
    model = adapted(family, kind)
    model.peft_config["default"].save_pretrained(tmp_path / "tuned")
    weights = model.base_model.model.state_dict() if inside else model.state_dict()
    torch.save(weights, tmp_path / "tuned" / "last.pt")
    assert_folded(bases[family], tmp_path / "tuned" / "last.pt", model, family, tmp_path)


def assert_folded(base: Path, tuned: Path, model: Any, family: str, folder: Path) -> None:
    loader = model_class(family, TASKS[family])
    merge(str(base), str(tuned), folder / "quarter", options=UNSYNCED)
    merge(str(base), str(tuned), folder / "whole", Recipe(alpha=1.0), options=UNSYNCED)
    before, quarter, whole = (
        loader.from_pretrained(path).state_dict() for path in (base, folder / "quarter", folder / "whole")
    )
    weights = model.merge_and_unload().state_dict()
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("lm_head.")}
    exact = {name: body.get(name, tensor).double() for name, tensor in before.items()}
    assert max(differences(quarter, interpolate(before, body)).values(), default=0) < 2
    assert max(differences(whole, exact).values(), default=0) < 2
    assert any(not torch.equal(before[name], quarter[name]) for name in before)


@FAMILIES
@UNLIKE
def test_a_state_dict_with_other_adapters_within_is_refused(
    family: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Of the wrapped model, and of the model inside of the wrapper."""
    model = adapted(family, kind)
    for name, weights in (("wrapped.pt", model.state_dict()), ("inner.pt", model.base_model.model.state_dict())):
        torch.save(weights, tmp_path / name)
        assert_refused(bases[family], tmp_path / name)


@FAMILIES
@UNLIKE
@pytest.mark.parametrize("form", FORMS)
def test_another_adapter_alone_is_refused(
    family: str, kind: str, form: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapted(family, kind).save_pretrained(tmp_path / "adapter", safe_serialization=form != "pickle")
    assert_refused(bases[family], tmp_path / FORMS[form])
