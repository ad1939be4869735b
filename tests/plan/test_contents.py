"""Weights that are expressed elsewhere are recognised by names, types and shapes, and refused with what to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from models import build, checkpoint_of
from plan_pairs import Tensors, moved, prefixed, refusals

from speechft_merge import MergeOptions, merge
from speechft_merge.errors import MismatchError
from speechft_merge.plan.contents import judge_contents

if TYPE_CHECKING:
    from pathlib import Path

HUBERT: Tensors = build("Hubert").state_dict()
Q = "encoder.layers.{}.attention.q_proj."


def beside(*words: str, kept: str = "weight") -> Tensors:
    """The model with more tensors in each q_proj, and its weight under another name."""
    made = moved(HUBERT)
    for layer in range(2):
        stem = Q.format(layer)
        made[stem + kept] = made.pop(stem + "weight")
        made |= {stem + word: torch.ones(4, 4) for word in words}
    return made


ADAPTERS = {
    "peft LoRA": beside("lora_A.default.weight", "lora_B.default.weight", kept="base_layer.weight"),
    "peft DoRA": beside("lora_magnitude_vector.default.weight", kept="base_layer.weight"),
    "peft IA3": beside("ia3_l.default", kept="base_layer.weight"),
    "peft VeRA": beside("vera_lambda_b.default", kept="base_layer.weight"),
    "peft OFT": beside("oft_R.default.weight", kept="base_layer.weight"),
    "loralib": beside("lora_A", "lora_B"),
    "SpeechBrain LoRA": beside("adapter_down_proj.weight", kept="pretrained_module.weight"),
    "adapters library": beside("loras.asr.lora_A"),
}
QUANTISED = {
    "bitsandbytes 8 bit": beside("SCB", "weight_format"),
    "bitsandbytes 4 bit": beside("weight.absmax", "weight.quant_map"),
    "GPTQ": beside("qzeros", "scales", "g_idx", kept="qweight"),
    "compressed tensors": beside("weight_scale", kept="weight_packed"),
    "HQQ": beside("scale", "zero", kept="W_q"),
    "16-bit integers": {n: t.to(torch.int16) if t.dim() == 2 else t for n, t in HUBERT.items()},
    "torch dynamic, packed in tuples": beside("scale", "zero_point", kept="packed"),
    "torch dynamic": beside("_packed_params._packed_params", "zero_point"),
    "8-bit integers": {n: t.to(torch.int8) if t.dim() == 2 else t for n, t in HUBERT.items()},
    "8-bit floats": {n: t.to(torch.float8_e4m3fn) if t.dim() == 2 else t for n, t in HUBERT.items()},
}
OTHERS = {
    "ZeRO-3": ({name: torch.empty(0) for name in HUBERT}, "zero_to_fp32.py"),
    "ZeRO-3, large tensors": ({n: torch.empty(0) if t.numel() > 999 else t for n, t in HUBERT.items()}, "zero_to_fp32"),
    "FSDP": ({"_flat_param": torch.zeros(9), "encoder.layers.0._flat_param": torch.zeros(9)}, "full state dict"),
    "pruning": (beside("weight_mask", kept="weight_orig"), "prune.remove"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_around_a_weight_is_refused_by_its_name(kind: str) -> None:
    (told,) = refusals(HUBERT, ADAPTERS[kind])
    assert told.startswith("tuned holds a LoRA or another adapter")
    assert "q_proj" in told
    (told,) = refusals(HUBERT, ADAPTERS[kind], keep_head=True)
    assert told.startswith("tuned holds a LoRA")


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_refused_on_either_side(kind: str) -> None:
    for pair in ((HUBERT, QUANTISED[kind]), (QUANTISED[kind], moved(HUBERT))):
        (told,) = refusals(*pair)
        assert "holds quantised weights" in told


@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_trainer_left_is_refused_with_what_makes_it_readable(kind: str) -> None:
    tensors, hint = OTHERS[kind]
    (finding,) = judge_contents(checkpoint_of(tensors))
    assert hint in finding.hint


def test_adapters_of_a_models_own_are_none_of_these() -> None:
    own = {f"encoder.layers.0.adapter_layer.{name}": torch.ones(4) for name in ("linear_1.weight", "norm.weight")}
    assert judge_contents(checkpoint_of(HUBERT | own | {"adapter.layers.0.conv.weight": torch.ones(4)})) == []


@pytest.mark.parametrize("wrapper", ["lora_model.", "base_layer.", "bone_net."])
def test_a_word_before_all_names_is_the_name_of_a_module(wrapper: str) -> None:
    assert refusals(HUBERT, prefixed(wrapper, moved(HUBERT))) == ()
    scaled = {name.replace("weight", "weight_scale"): torch.ones(()) for name in HUBERT if "q_proj" in name}
    assert refusals(HUBERT | scaled, moved(HUBERT | scaled)) == ()  # icefall's ScaledLinear


def test_an_adapter_beside_a_whole_model_is_refused_unless_the_file_is_named(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        build("Hubert", seed=seed).save_pretrained(tmp_path / name)
    (tmp_path / "tuned/adapter_config.json").write_text("{}")
    options = MergeOptions(allow_unrelated=True)
    with pytest.raises(MismatchError, match="tuned has an adapter beside its weights"):
        merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", options=options)
    merge(tmp_path / "base", tmp_path / "tuned/model.safetensors", tmp_path / "out", options=options)


def test_a_quantization_config_is_believed(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        build("Hubert").save_pretrained(tmp_path / name)
    config = tmp_path / "tuned/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(MismatchError, match="tuned is quantised"):
        merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    assert not (tmp_path / "out").exists()
