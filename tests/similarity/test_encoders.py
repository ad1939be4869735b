"""The hidden states that are compared, against those that transformers itself returns."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import build

from speechft_merge.errors import CheckpointError
from speechft_merge.executor.drift import Drift
from speechft_merge.layouts.structure import locate
from speechft_merge.record.layers import INPUT, OUTPUT, LayerKey
from speechft_merge.similarity.encoders import build_encoder, find_layers
from speechft_merge.similarity.inputs import Batch
from speechft_merge.similarity.models import drift_by_layer

if TYPE_CHECKING:
    from collections.abc import Mapping

STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    if family == "Whisper":
        return {"input_features": torch.randn(1, 8, 40)}
    if family == "Wav2Vec2Bert":
        return {"input_features": torch.randn(1, 30, 16)}
    return {"input_values": torch.randn(1, 8000)}


@pytest.mark.parametrize(
    ("family", "config", "norm"),
    [
        ("Hubert", {}, None),
        ("Hubert", STABLE, "encoder.layer_norm"),
        ("Wav2Vec2", STABLE, "encoder.layer_norm"),
        ("WavLM", {}, None),
        ("WavLM", STABLE, "encoder.layer_norm"),
        ("Data2VecAudio", {}, None),
        ("Wav2Vec2Bert", {"add_adapter": False}, None),
        ("Whisper", {}, "layer_norm"),
    ],
)
def test_layers_are_the_input_the_output_of_each_block_and_what_a_norm_after_them_makes_of_it(
    family: str, config: Mapping[str, Any], norm: str | None
) -> None:
    model = build(family, num_hidden_layers=3, **config)
    model = model.encoder if family == "Whisper" else model
    encoder = build_encoder("model", model.config.to_dict(), dict(model.state_dict()), torch.device("cpu"))
    (found,) = encoder.run(Batch(inputs_of(family), None))
    with torch.no_grad():
        out = model(**inputs_of(family), output_hidden_states=True)
    blocks = len(out.hidden_states) - 1
    assert [key.label for key in found] == ["input", *map(str, range(blocks)), *(["final_norm"] if norm else [])]
    states = [*found.values()]
    for ours, theirs in zip(states[:blocks], out.hidden_states[:blocks], strict=True):
        assert torch.equal(ours, theirs[0])
    assert torch.equal(states[-1], out.last_hidden_state[0])
    if norm:  # which transformers before 5.16 has already applied to its last hidden state
        with torch.no_grad():
            assert torch.equal(model.get_submodule(norm)(states[blocks]), states[-1])
        assert not torch.equal(states[blocks], states[-1])


def test_what_follows_the_last_block_and_is_no_norm_is_the_output_and_no_weights_count_to_it() -> None:
    model = build("Hubert")
    encoder = build_encoder("model", model.config.to_dict(), dict(model.state_dict()), torch.device("cpu"))
    (plain,) = encoder.run(Batch(inputs_of("Hubert"), None))

    def double(_: object, __: object, output: Any) -> Any:
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    encoder.model.encoder.register_forward_hook(double)
    (found,) = encoder.run(Batch(inputs_of("Hubert"), None))
    assert [key.label for key in found] == ["input", "0", "1", "output"]
    assert torch.equal(found[OUTPUT], 2 * plain[LayerKey("layers", block=1)])
    drifts = {"masked_spec_embed": Drift(1.0, 4.0, True)}
    assert drift_by_layer(drifts, encoder, found) == {**dict.fromkeys(found), INPUT: 2.0}


def test_nothing_is_left_on_the_model_after_it_has_run() -> None:
    model = build("Hubert")
    encoder = build_encoder("model", model.config.to_dict(), dict(model.state_dict()), torch.device("cpu"))
    encoder.run(Batch(inputs_of("Hubert"), None))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.layers.values())


def test_blocks_go_by_the_name_of_their_stack_where_it_is_not_called_encoder() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = torch.nn.Module()
            block = {"query": torch.nn.Linear(4, 4), "key": torch.nn.Linear(4, 4)}
            self.trunk.members = torch.nn.ModuleList(torch.nn.ModuleDict(block) for _ in range(2))

    model = Model()
    locations = locate({name: tuple(values.shape) for name, values in model.state_dict().items()})
    assert {*find_layers(model, locations)} == {LayerKey.of(location) for location in locations.values()}
    assert [key.block for key in find_layers(model, locations)] == [0, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 5000},
        {"hidden_size": 10**9},
        {"hidden_size": 10**30},
        {"hidden_size": 8192, "intermediate_size": 65536},
        {"intermediate_size": 10**8},
        {"conv_dim": [10**6] * 7},
    ],
    ids=str,
)
def test_a_config_of_a_model_much_larger_than_its_weights_takes_neither_memory_nor_time(
    settings: dict[str, Any],
) -> None:
    model = build("Hubert")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"model: its (config|file)"):
        build_encoder("model", model.config.to_dict() | settings, dict(model.state_dict()), torch.device("cpu"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # KB
