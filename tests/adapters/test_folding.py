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
    with pytest.raises(MismatchError, match="changes 4 weights that base does not have where"):
        folded(HUBERT, other)
    wide = {name: torch.cat([tensor] * 2, dim=1 if ".lora_A" in name else 0) for name, tensor in lora().items()}
    with pytest.raises(MismatchError, match="does not fit"):
        folded(HUBERT, wide)


WHISPER: Tensors = dict(build("Whisper", "ForConditionalGeneration").state_dict())
ENCODER = [f"model.encoder.layers.{layer}.self_attn.q_proj" for layer in range(2)]


def of_whisper(prefix: str) -> Tensors:
    return {
        f"{prefix}layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.ones(*shape)
        for layer in range(2)
        for side, shape in (("B", (32, 2)), ("A", (2, 32)))
    }


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder.", "base_model.model.model.encoder."])
def test_an_adapter_of_an_encoder_alone_is_not_one_of_the_decoder(prefix: str) -> None:
    """Whose layers have the same names and shapes."""
    base = checkpoint_of(WHISPER, "base")
    (found,), _ = fold_adapters(base, [checkpoint_of(of_whisper(prefix), "tuned")], ALPHA)
    changed = {name for name, span in found.tensors.items() if span is not base.tensors[name]}
    assert changed == {f"{layer}.weight" for layer in ENCODER}


@pytest.mark.parametrize("prefix", ["model.decoder.", "language_model.model.", "decoder."])
def test_an_adapter_of_another_stack_is_not_one_of_the_encoder(prefix: str) -> None:
    encoder = {name.removeprefix("model.encoder."): t for name, t in WHISPER.items() if "model.encoder." in name}
    with pytest.raises(MismatchError, match="does not have where it has them"):
        folded(encoder, of_whisper(prefix))
    if "decoder" not in prefix:
        with pytest.raises(MismatchError, match="does not have where it has them"):
            folded(WHISPER, of_whisper(prefix))


def test_an_adapter_that_fits_two_encoders_is_refused_with_both() -> None:
    both = prefixed("left.", HUBERT) | prefixed("right.", HUBERT)
    with pytest.raises(MismatchError, match=r"fits several parts of base: 'left.*' and 'right"):
        folded(both, lora())


def test_lora_on_a_head_is_left_out_where_the_base_has_none() -> None:
    """peft's all-linear changes the projector and the classifier as well."""
    head = {"projector.lora_B.weight": torch.ones(16, 2), "projector.lora_A.weight": torch.ones(2, 32)}
    found, (note,) = folded(HUBERT, prefixed("hubert.", lora()) | head)
    assert_equal(found, with_lora(HUBERT, lora()))
    assert note == "the LoRA on projector of tuned is left out: a head of its own"
    for size, taken in ((32, True), (31, False)):
        base = HUBERT | {"projector.weight": torch.ones(16, size)}
        found, notes = folded(base, prefixed("hubert.", lora()) | head)
        assert_equal(found, with_lora(base, lora() | (head if taken else {})))
        assert notes == ([] if taken else [note])
    with pytest.raises(MismatchError, match="changes heads only"):
        folded(HUBERT, head)


def test_an_adapter_may_hold_a_weight_that_it_changes() -> None:
    """peft saves an embedding that LoRA is on as a whole, since its size may have changed."""
    whole = {f"{LAYERS[0]}.base_layer.weight": torch.full((32, 32), 2.0)}
    found, _ = folded(HUBERT, prefixed("base_model.model.", lora() | whole))
    assert_equal(found, with_lora(HUBERT | {f"{LAYERS[0]}.weight": torch.full((32, 32), 2.0)}, lora()))


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({f"{LAYERS[0]}.lora_magnitude_vector.weight": torch.ones(32)}, "more than LoRA: .*lora_magnitude_vector"),
        ({f"{LAYERS[0]}.lora_B.bias": torch.ones(32)}, "more than LoRA: .*lora_B.bias"),
        ({f"{LAYERS[0]}.ia3_l": torch.ones(32)}, "more than LoRA: .*ia3_l"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_more_than_lora_is_refused_by_name(extra: Tensors, told: str, whole: bool) -> None:
    with pytest.raises(MismatchError, match=told):
        folded(HUBERT, (within("lora_{}.weight", "base_layer.", HUBERT) if whole else lora()) | extra)


def test_several_adapters_in_one_file_are_refused() -> None:
    tuned = lora("lora_{}.default.weight", LAYERS[:2]) | lora("lora_{}.other.weight", LAYERS[2:])
    with pytest.raises(MismatchError, match="several adapters: default, other"):
        folded(HUBERT, tuned)


def test_half_of_the_changed_weights_is_refused() -> None:
    tuned = within("lora_{}", "", HUBERT)
    del tuned[f"{LAYERS[0]}.weight"]
    with pytest.raises(MismatchError, match=f"on 4 layers, and no weight of 1, first '{LAYERS[0]}'"):
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
