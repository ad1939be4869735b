"""Any checkpoint seen as transformers would have it: the names, configuration and family that its classes take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lab_files import FILES, decoar2, fairseq_ctc, plain, s3prl_base, s3prl_finetune, spin, wavlm
from lab_models import BASE, LABS, Lab, LabModel, build_lab
from lab_pairs import FAMILIES
from models import CLASSES, backbone, build, model_class

from speechft_merge.checkpoints import TensorSpan, open_checkpoint
from speechft_merge.checkpoints.model_config import ModelConfig, read_model_config
from speechft_merge.layouts.weight_norm import canonical

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Described:
    """A checkpoint as transformers would have it: names and configuration together."""

    tensors: dict[str, TensorSpan]
    heads: dict[str, TensorSpan]
    model: ModelConfig
    layout: str
    prefix: str


def describe(path: Path) -> Described:
    checkpoint = open_checkpoint(str(path))
    naming = checkpoint.naming
    tensors: dict[bool, dict[str, TensorSpan]] = {False: {}, True: {}}
    for own, name in naming.under().items():
        tensors[name.is_head][name.canonical] = checkpoint.tensors[own]
    return Described(tensors[False], tensors[True], read_model_config(checkpoint), naming.layout, naming.prefix)


def described_in(whole: Any, folder: Path, name: str = "model.pt") -> Described:
    torch.save(whole, folder / name)
    return describe(folder / name)


def tensors_of(seen: Described) -> dict[str, torch.Tensor]:
    """Its tensors, read by their spans."""
    found = {}
    for name, span in seen.tensors.items():
        content = bytearray(span.source.read(span.offset, span.nbytes))
        found[name] = torch.frombuffer(content, dtype=getattr(torch, span.dtype.torch_name)).reshape(span.shape)
    return found


def model_of(seen: Described) -> Any:
    """transformers' bare model with nothing but what it tells."""
    assert seen.model.config is not None
    family = FAMILIES[seen.model.config["model_type"]]
    config = model_class(family, "Config").from_dict(dict(seen.model.config))
    model = model_class(family, "Model")(config).eval()
    names = {canonical(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in tensors_of(seen).items()}, strict=True)
    return model


def states_of(model: Any, waves: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        if isinstance(model, LabModel):
            return model(waves)
        out = model(waves, output_hidden_states=True)
        return [*out.hidden_states[:-1], out.last_hidden_state]


def assert_same_states(ours: Any, theirs: Any) -> None:
    waves = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    for a, b in zip(states_of(ours, waves), states_of(theirs, waves), strict=True):
        assert torch.max(torch.abs(a - b)) < 1e-4


# the labs' files
@pytest.mark.parametrize("kind", LABS)
def test_the_view_of_a_labs_file_builds_a_model_of_equal_hidden_states(kind: str, tmp_path: Path) -> None:
    """Names, shapes and configuration all come from the file; transformers builds from them, and computes the same."""
    lab = LABS[kind]
    model = build_lab(lab)
    write = wavlm if lab.family == "wavlm" else s3prl_base
    seen = described_in(write(lab, model.state_dict()), tmp_path)
    assert (seen.layout, seen.model.family) == ("fairseq", lab.family)
    assert seen.model.extractor is not None
    assert seen.model.extractor["do_normalize"] is (lab.family != "wavlm")
    assert_same_states(model, model_of(seen))


@pytest.mark.parametrize("kind", FILES)
def test_the_view_is_the_same_whatever_the_container(kind: str, tmp_path: Path) -> None:
    lab = BASE["hubert"]
    model = build_lab(lab)
    seen = described_in(FILES[kind](lab, model.state_dict()), tmp_path)
    bare = described_in(s3prl_base(lab, model.state_dict()), tmp_path, "bare.pt")
    found, expected = tensors_of(seen), tensors_of(bare)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert seen.model.family == "hubert"
    assert seen.model.title == "HuBERT, 2 layers of width 32"


def test_heads_stand_apart_under_the_names_of_transformers(tmp_path: Path) -> None:
    lab = BASE["wav2vec2"]
    weights = build_lab(lab).state_dict()
    assert set(described_in(s3prl_base(lab, weights), tmp_path).heads) == {
        "quantizer.codevectors", "quantizer.weight_proj.weight", "quantizer.weight_proj.bias",
        "project_q.weight", "project_q.bias", "project_hid.weight", "project_hid.bias",
    }  # fmt: skip
    assert set(described_in(fairseq_ctc(lab, weights), tmp_path).heads) == {"lm_head.weight", "lm_head.bias"}
    assert set(described_in(spin(lab, weights), tmp_path).heads) >= {"pred_head.weight"}


def test_a_fine_tune_of_transformers_inside_s3prl_is_seen_through(tmp_path: Path) -> None:
    """S3PRL's hf_hubert: `model.` before the names of transformers."""
    bare = build("Hubert").state_dict()
    seen = described_in(s3prl_finetune(BASE["hubert"], bare), tmp_path)
    assert (seen.layout, seen.prefix, seen.model.family) == ("transformers", "model.", "hubert")
    assert seen.tensors.keys() == {canonical(name) for name in bare}


def test_decoar2_has_a_config_of_its_own_though_transformers_has_no_class(tmp_path: Path) -> None:
    lab = BASE["decoar2"]
    seen = described_in(decoar2(lab, build_lab(lab).state_dict()), tmp_path)
    assert (seen.model.family, seen.layout, seen.model.stated) == ("decoar2", "fairseq", True)
    assert seen.model.config is not None
    assert {"model_type": "decoar2", "input_dim": 80, "hidden_size": 32}.items() <= seen.model.config.items()
    assert seen.model.extractor is not None
    assert seen.model.extractor["feature_extractor_type"] == "Decoar2FeatureExtractor"
    assert set(seen.heads) == {"quantizer.vars", "final_proj.weight"}
    assert "feature_projection.projection.weight" in seen.tensors


def test_a_file_without_configuration_says_what_is_not_known(tmp_path: Path) -> None:
    lab = BASE["hubert"]
    seen = described_in(plain(lab, build_lab(lab).state_dict()), tmp_path)
    assert seen.model.config is None
    assert "heads" in seen.model.problem or "strides" in seen.model.problem


# transformers' own
@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in CLASSES.items() for kind in kinds])
def test_the_view_of_any_class_has_the_names_of_the_bare_one(family: str, kind: str, tmp_path: Path) -> None:
    model = build(family, kind)
    model.save_pretrained(tmp_path)
    seen = describe(tmp_path)
    expected = {canonical(name) for name in backbone(family, kind)} - set(seen.heads)
    assert seen.tensors.keys() == expected
    assert seen.model.config == json.loads((tmp_path / "config.json").read_text())
    assert (seen.model.family, seen.layout, seen.model.extractor) == (model.config.model_type, "transformers", None)
    assert {name.partition(".")[0] for name in seen.heads} <= {
        "lm_head", "classifier", "projector", "proj_out", "tdnn", "objective", "layer_weights", "feature_extractor",
        "quantizer", "project_q", "project_hid",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["Whisper", "Wav2Vec2Bert", "WavLM", "Data2VecAudio"])
def test_some_families_are_told_by_their_names_alone(family: str, tmp_path: Path) -> None:
    model = build(family)
    torch.save(model.state_dict(), tmp_path / "model.bin")
    assert describe(tmp_path / "model.bin").model.family == model.config.model_type


def test_hubert_and_wav2vec2_are_not_guessed_apart(tmp_path: Path) -> None:
    torch.save(build("Hubert").state_dict(), tmp_path / "model.bin")
    seen = describe(tmp_path / "model.bin")
    assert (seen.model.family, seen.model.title) == (None, "HuBERT or wav2vec 2.0, 2 layers of width 32")


def test_the_settings_of_a_lab_reach_the_config(tmp_path: Path) -> None:
    lab = Lab(
        "hubert", extra={"dropout": 0.2, "encoder_layerdrop": 0.01, "dropout_input": 0.3, "activation_fn": "relu"}
    )
    config = described_in(s3prl_base(lab, build_lab(lab).state_dict()), tmp_path).model.config
    assert config is not None
    assert (config["hidden_dropout"], config["layerdrop"], config["feat_proj_dropout"]) == (0.2, 0.01, 0.3)
    assert config["hidden_act"] == "relu"
