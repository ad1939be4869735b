"""Adapters as fine-tunes: on the names of any base, in a whole checkpoint, and what cannot be folded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from float64 import moved
from models import build, checkpoint_of

from speechft_merge.adapters.folding import describe_adapter, fold_adapters
from speechft_merge.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints import Checkpoint

Tensors = dict[str, torch.Tensor]
HUBERT: Tensors = dict(build("Hubert").state_dict())
LAYERS = [name.removesuffix(".weight") for name in HUBERT if name.endswith(("q_proj.weight", "v_proj.weight"))]
RANK, ALPHA = 2, 6.0


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def lora(word: str = "lora_{}.weight", layers: list[str] = LAYERS) -> Tensors:
    """B and A beside each layer, as peft saves them."""
    torch.manual_seed(3)
    found: Tensors = {}
    for layer in layers:
        rows, columns = HUBERT[f"{layer}.weight"].shape
        found[f"{layer}.{word.format('B')}"] = 0.1 * torch.randn(rows, RANK)
        found[f"{layer}.{word.format('A')}"] = 0.1 * torch.randn(RANK, columns)
    return found


def with_lora(base: Mapping[str, torch.Tensor], added: Tensors) -> Tensors:
    """The weights that a model with these adapters computes with, in float64."""
    found = {name: tensor.double() for name, tensor in base.items()}
    for name in added:
        if ".lora_B" in name:
            product = added[name].double() @ added[name.replace(".lora_B", ".lora_A")].double()
            found[name[: name.index(".lora_B")] + ".weight"] += ALPHA / RANK * product
    return found


def folded(
    base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], alpha: float | None = ALPHA
) -> tuple[Checkpoint, list[str]]:
    models, findings = fold_adapters(checkpoint_of(base, "base"), [checkpoint_of(tuned, "tuned")], alpha)
    return models[0], findings


def assert_equal(found: Checkpoint, wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.tensors.keys() == wanted.keys()
    for name, exact in wanted.items():
        span = found.tensors[name]
        if span.dtype.interpolated:
            values = np.frombuffer(span.source.read(span.offset, span.nbytes), np.float32).reshape(span.shape)
            assert np.allclose(values, exact.numpy(), rtol=2**-22, atol=1e-7), name


PLACES = {
    "the same names": ("", ""),
    "peft's words before all": ("", "base_model.model."),
    "a class with a head": ("", "base_model.model.hubert."),
    "the base with a prefix": ("hubert.", "base_model.model."),
    "both, each its own": ("encoders.0.", "base_model.model.hubert."),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_adapter_alone_stands_for_the_base_with_its_changes(place: str) -> None:
    ours, theirs = PLACES[place]
    found, findings = folded(prefixed(ours, HUBERT), prefixed(theirs, lora()))
    assert_equal(found, prefixed(ours, with_lora(HUBERT, lora())))
    assert findings == []


def test_what_an_adapter_does_not_change_is_the_bases_own_tensor() -> None:
    base = checkpoint_of(HUBERT, "base")
    (found,), _ = fold_adapters(base, [checkpoint_of(lora(), "tuned")], ALPHA)
    assert {name for name, span in found.tensors.items() if span is not base.tensors[name]} == {
        f"{layer}.weight" for layer in LAYERS
    }


def test_tensors_that_were_trained_beside_lora_take_the_bases_place() -> None:
    """Biases and norms, as loralib and peft save them, and modules trained as a whole, heads among them."""
    norm = {"encoder.layer_norm.weight": torch.full((32,), 2.0)}
    bias = {f"{LAYERS[0]}.base_layer.bias": torch.full((32,), 3.0)}
    head = {"lm_head.weight": torch.ones(12, 32)}
    tuned = prefixed("base_model.model.hubert.", lora() | norm | bias) | prefixed("base_model.model.", head)
    found, _ = folded(HUBERT, tuned)
    assert_equal(found, with_lora(HUBERT, lora()) | norm | {f"{LAYERS[0]}.bias": torch.full((32,), 3.0)} | head)


SPELLINGS = {
    "peft": ("lora_{}.default.weight", "base_layer."),
    "peft before 0.6": ("lora_{}.default.weight", ""),
    "loralib": ("lora_{}", ""),
}


def within(word: str, inner: str, weights: Mapping[str, torch.Tensor]) -> Tensors:
    around = {f"{layer}." for layer in LAYERS}
    renamed = {
        next((layer + inner + name[len(layer) :] for layer in around if name.startswith(layer)), name): tensor
        for name, tensor in weights.items()
    }
    return renamed | lora(word)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("prefix", ["", "base_model.model.", "module._orig_mod."])
def test_lora_in_a_whole_checkpoint_is_added_to_its_own_weights(spelling: str, prefix: str) -> None:
    weights = moved(HUBERT)
    found, findings = folded(HUBERT, prefixed(prefix, within(*SPELLINGS[spelling], weights)))
    assert_equal(found, with_lora(weights, lora()))
    assert findings == []


def test_speechbrains_lora_is_added_too() -> None:
    ways = {"adapter_up_proj.weight": "lora_B.weight", "adapter_down_proj.weight": "lora_A.weight"}
    tuned = within("lora_{}.weight", "pretrained_module.", HUBERT)
    renamed = {name: next((way for way, word in ways.items() if name.endswith(word)), None) for name in tuned}
    tuned = {name if way is None else name.removesuffix(ways[way]) + way: tuned[name] for name, way in renamed.items()}
    found, _ = folded(HUBERT, tuned)
    assert_equal(found, with_lora(HUBERT, lora()))


def test_lora_that_is_in_the_weights_already_is_not_added_again() -> None:
    """loralib adds it for eval(), in which ESPnet saves its checkpoints; the matrices stay beside."""
    weights = {name: tensor.float() for name, tensor in with_lora(moved(HUBERT), lora()).items()}
    found, (note,) = folded(HUBERT, within("lora_{}", "", weights))
    assert_equal(found, weights)
    assert "in its weights already" in note


def test_without_alpha_a_whole_checkpoint_is_left_to_the_plan_and_an_adapter_is_refused() -> None:
    tuned = checkpoint_of(within("lora_{}", "", HUBERT), "tuned")
    (left,), _ = fold_adapters(checkpoint_of(HUBERT, "base"), [tuned])
    assert left is tuned
    with pytest.raises(MismatchError, match=r"LoRA of rank 2 on (q|v)_proj, (q|v)_proj of unknown alpha.*--lora-alpha"):
        folded(HUBERT, lora(), alpha=None)


def test_an_alpha_without_effect_is_an_error() -> None:
    with pytest.raises(UsageError, match="--lora-alpha has no effect"):
        folded(HUBERT, moved(HUBERT))


def test_an_adapter_as_the_base_is_refused() -> None:
    with pytest.raises(MismatchError, match="base is an adapter, not a whole model"):
        folded(lora(), HUBERT)


def test_an_adapter_of_another_model_is_refused() -> None:
    other = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in lora().items()}
    with pytest.raises(MismatchError, match="changes 4 weights that base does not have"):
        folded(HUBERT, other)


def test_several_adapters_in_one_file_are_refused() -> None:
    tuned = lora("lora_{}.default.weight", LAYERS[:2]) | lora("lora_{}.other.weight", LAYERS[2:])
    with pytest.raises(MismatchError, match="several adapters: default, other"):
        folded(HUBERT, tuned)


def test_half_of_the_changed_weights_is_refused() -> None:
    tuned = within("lora_{}", "", HUBERT)
    del tuned[f"{LAYERS[0]}.weight"]
    with pytest.raises(MismatchError, match=f"on 4 layers, of which 1 have no weight, first '{LAYERS[0]}'"):
        folded(HUBERT, tuned)


def test_an_adapter_of_its_class_replaces_the_bases_of_another_language() -> None:
    """MMS: adapter.fra.safetensors holds the layers of the adapter, and the head."""
    names = ["norm.weight", "norm.bias", "linear_1.weight", "linear_1.bias"]
    own = {f"encoder.layers.{i}.adapter_layer.{name}": torch.ones(4) for i in range(2) for name in names}
    french = {name: tensor * 2 for name, tensor in own.items()}
    base = prefixed("wav2vec2.", HUBERT | own) | {"lm_head.weight": torch.ones(12, 32)}
    tuned = prefixed("wav2vec2.", french) | {"lm_head.weight": torch.ones(9, 32)}
    found, _ = folded(base, tuned, alpha=None)
    assert_equal(found, base | tuned)


def test_the_head_and_the_drift_of_a_whole_model_make_it_no_adapter() -> None:
    model = checkpoint_of(moved(HUBERT), "tuned")
    assert fold_adapters(checkpoint_of(HUBERT, "base"), [model])[0] == [model]
    assert describe_adapter(model) is None


@pytest.mark.parametrize(("word", "told"), [("lora_{}.weight", "LoRA of rank 2 on 4 weights"), ("lora_{}", "rank 2")])
def test_an_adapter_is_described(word: str, told: str) -> None:
    found: Any = describe_adapter(checkpoint_of(lora(word), "tuned"))
    assert told in found[0]
    assert found[1] is False
