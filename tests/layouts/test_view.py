"""Any checkpoint seen as transformers would have it: the names, configuration and family that its classes take."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab_files import FILES, decoar2, fairseq_ctc, plain, s3prl_base, s3prl_finetune, spin, wavlm
from lab_models import BASE, LABS, Lab, LabModel, build_lab
from lab_pairs import FAMILIES
from models import CLASSES, backbone, build, model_class

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.errors import CheckpointError
from speechft_merge.layouts.configuration import MAX_CONVOLUTIONS, derive_config, derive_extractor, parse_convolutions
from speechft_merge.layouts.family import family_of
from speechft_merge.layouts.structure import canonical
from speechft_merge.layouts.view import TransformersView, transformers_view

if TYPE_CHECKING:
    from pathlib import Path


def view_of(whole: Any, folder: Path, name: str = "model.pt") -> TransformersView:
    torch.save(whole, folder / name)
    return transformers_view(open_checkpoint(str(folder / name)))


def tensors_of(view: TransformersView) -> dict[str, torch.Tensor]:
    """The view's tensors, read by their spans."""
    found = {}
    for name, span in view.tensors.items():
        content = bytearray(span.source.read(span.offset, span.nbytes))
        found[name] = torch.frombuffer(content, dtype=getattr(torch, span.dtype.torch_name)).reshape(span.shape)
    return found


def model_of(view: TransformersView) -> Any:
    """transformers' bare model with nothing but what the view tells."""
    assert view.config is not None
    family = FAMILIES[view.config["model_type"]]
    config = model_class(family, "Config").from_dict(dict(view.config))
    model = model_class(family, "Model")(config).eval()
    names = {canonical(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in tensors_of(view).items()}, strict=True)
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
    view = view_of(write(lab, model.state_dict()), tmp_path)
    assert (view.layout, view.family) == ("fairseq", lab.family)
    assert view.extractor is not None
    assert view.extractor["do_normalize"] is (lab.family != "wavlm")
    assert_same_states(model, model_of(view))


@pytest.mark.parametrize("kind", FILES)
def test_the_view_is_the_same_whatever_the_container(kind: str, tmp_path: Path) -> None:
    lab = BASE["hubert"]
    model = build_lab(lab)
    view = view_of(FILES[kind](lab, model.state_dict()), tmp_path)
    bare = view_of(s3prl_base(lab, model.state_dict()), tmp_path, "bare.pt")
    found, expected = tensors_of(view), tensors_of(bare)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert view.family == "hubert"
    assert view.title == "HuBERT, 2 layers of width 32"


def test_heads_stand_apart_under_the_names_of_transformers(tmp_path: Path) -> None:
    lab = BASE["wav2vec2"]
    weights = build_lab(lab).state_dict()
    assert set(view_of(s3prl_base(lab, weights), tmp_path).heads) == {
        "quantizer.codevectors", "quantizer.weight_proj.weight", "quantizer.weight_proj.bias",
        "project_q.weight", "project_q.bias", "project_hid.weight", "project_hid.bias",
    }  # fmt: skip
    assert set(view_of(fairseq_ctc(lab, weights), tmp_path).heads) == {"lm_head.weight", "lm_head.bias"}
    assert set(view_of(spin(lab, weights), tmp_path).heads) >= {"pred_head.weight"}


def test_a_fine_tune_of_transformers_inside_s3prl_is_seen_through(tmp_path: Path) -> None:
    """S3PRL's hf_hubert: `model.` before the names of transformers."""
    bare = build("Hubert").state_dict()
    view = view_of(s3prl_finetune(BASE["hubert"], bare), tmp_path)
    assert (view.layout, view.prefix, view.family) == ("transformers", "model.", "hubert")
    assert view.tensors.keys() == {canonical(name) for name in bare}


def test_decoar2_has_no_config_and_says_why(tmp_path: Path) -> None:
    lab = BASE["decoar2"]
    view = view_of(decoar2(lab, build_lab(lab).state_dict()), tmp_path)
    assert (view.family, view.config, view.extractor, view.layout) == ("decoar2", None, None, "fairseq")
    assert view.config_problem == "no config.json can be derived for a model of the kind decoar2"
    assert set(view.heads) == {"quantizer.vars", "final_proj.weight"}
    assert "feature_projection.projection.weight" in view.tensors


def test_a_file_without_configuration_says_what_is_not_known(tmp_path: Path) -> None:
    lab = BASE["hubert"]
    view = view_of(plain(lab, build_lab(lab).state_dict()), tmp_path)
    assert view.config is None
    assert "heads" in view.config_problem or "strides" in view.config_problem


# transformers' own
@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in CLASSES.items() for kind in kinds])
def test_the_view_of_any_class_has_the_names_of_the_bare_one(family: str, kind: str, tmp_path: Path) -> None:
    model = build(family, kind)
    model.save_pretrained(tmp_path)
    view = transformers_view(open_checkpoint(str(tmp_path)))
    expected = {canonical(name) for name in backbone(family, kind)} - set(view.heads)
    assert view.tensors.keys() == expected
    assert view.config == json.loads((tmp_path / "config.json").read_text())
    assert (view.family, view.layout, view.extractor) == (model.config.model_type, "transformers", None)
    assert {name.partition(".")[0] for name in view.heads} <= {
        "lm_head", "classifier", "projector", "proj_out", "tdnn", "objective", "layer_weights", "feature_extractor",
        "quantizer", "project_q", "project_hid",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["Whisper", "Wav2Vec2Bert", "WavLM", "Data2VecAudio"])
def test_some_families_are_told_by_their_names_alone(family: str, tmp_path: Path) -> None:
    model = build(family)
    torch.save(model.state_dict(), tmp_path / "model.bin")
    assert transformers_view(open_checkpoint(str(tmp_path / "model.bin"))).family == model.config.model_type


def test_hubert_and_wav2vec2_are_not_guessed_apart(tmp_path: Path) -> None:
    torch.save(build("Hubert").state_dict(), tmp_path / "model.bin")
    view = transformers_view(open_checkpoint(str(tmp_path / "model.bin")))
    assert (view.family, view.title) == (None, "HuBERT or wav2vec 2.0, 2 layers of width 32")


# configuration
PUBLISHED = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"


def published_shapes(layers: int, width: int, large: bool = False) -> dict[str, tuple[int, ...]]:
    """By transformers' names, of the size of a published model; only what the configuration is read from."""
    shapes: dict[str, tuple[int, ...]] = {
        "feature_projection.layer_norm.weight": (512,),
        "feature_projection.projection.weight": (width, 512),
        "encoder.pos_conv_embed.conv.weight_v": (width, width // 16, 128),
        "encoder.layer_norm.weight": (width,),
    }
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] = (512, 512 if i else 1, kernel)
        if large or not i:
            shapes[f"feature_extractor.conv_layers.{i}.layer_norm.weight"] = (512,)
        if large:
            shapes[f"feature_extractor.conv_layers.{i}.conv.bias"] = (512,)
    for i in range(layers):
        shapes[f"encoder.layers.{i}.feed_forward.intermediate_dense.weight"] = (4 * width, width)
    return shapes


SIZES = [(12, 768, False, 12), (24, 1024, True, 16), (48, 1280, True, 16)]
TITLES = {
    (12, 768): "HuBERT Base",
    (24, 1024): "HuBERT Large",
    (48, 1280): "HuBERT X-Large",
    (2, 32): "HuBERT, 2 layers of width 32",
}


@pytest.mark.parametrize(("layers", "width", "large", "heads"), SIZES)
def test_published_sizes_need_no_configuration(layers: int, width: int, large: bool, heads: int) -> None:
    """facebook/hubert-{base-ls960,large-ll60k,xlarge-ll60k}: what their config.json says."""
    config = derive_config("hubert", published_shapes(layers, width, large), {})
    assert config["num_attention_heads"] == heads
    assert (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]) == (
        layers,
        width,
        4 * width,
    )
    assert config["conv_stride"] == [5, 2, 2, 2, 2, 2, 2]
    assert config["conv_kernel"] == [10, 3, 3, 3, 3, 2, 2]
    assert config["conv_dim"] == [512] * 7
    assert config["conv_bias"] is config["do_stable_layer_norm"] is large
    assert config["feat_extract_norm"] == ("layer" if large else "group")
    assert (config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]) == (128, 16)


@pytest.mark.parametrize("size", TITLES)
def test_sizes_have_the_names_of_the_papers(size: tuple[int, int]) -> None:
    shapes = published_shapes(*size) | {"final_proj.weight": (256, 768)}
    assert family_of(shapes).title == TITLES[size]


@pytest.mark.parametrize("normalize", [True, False])
def test_waveforms_are_normalised_as_the_task_says(normalize: bool) -> None:
    shapes = published_shapes(12, 768)
    assert derive_extractor(shapes, {}, {"normalize": normalize})["do_normalize"] is normalize
    assert derive_extractor(shapes, {"normalize": normalize}, {})["do_normalize"] is normalize
    assert derive_extractor(published_shapes(24, 1024, normalize), {}, {})["do_normalize"] is normalize


def test_convolutions_are_parsed_as_python_would() -> None:
    for text in (PUBLISHED, "[(512, 10, 5)] + [(512, 3, 2)] * 4 + 2 * [(512,2,2)]", "[(4,3,2),(5,6,1)]"):
        assert parse_convolutions(text) == eval(text)


HOSTILE = [
    "", "1", "[]+1", "[(1,2)]", "(1,2,3)", "[(1,2,3)] * 1000", "[[(1,2,3)] * 10] * 10 * 10", "[(1,2,'x')]",
    "__import__('os').system('true')", "[(1,2,3) for _ in range(9)]", "9**9**9", "[" * 900, "a", "[(1,2,3)]" * 200,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_else_is_evaluated(text: str) -> None:
    with pytest.raises(CheckpointError, match="conv_feature_layers"):
        parse_convolutions(text)


@given(st.lists(st.tuples(*[st.integers(1, 99)] * 3), min_size=1, max_size=MAX_CONVOLUTIONS))
def test_any_list_of_convolutions_is_read(layers: list[tuple[int, int, int]]) -> None:
    text = repr(layers)
    if len(text) <= 1000:
        assert parse_convolutions(text) == layers


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "conformer": ({"layer_type": "conformer"}, "no class for layers of the kind conformer"),
    "unknown activation": ({"activation_fn": "mystery"}, "activation 'mystery'"),
    "more convolutions than tensors": ({"conv_feature_layers": "[(512,3,2)] * 9"}, "9 convolutions, its tensors 7"),
    "heads that do not divide": ({"encoder_attention_heads": 5}, "attention heads"),
    "no heads": ({"encoder_attention_heads": 0}, "attention heads"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_transformers_cannot_be_told_is_refused(kind: str) -> None:
    settings, message = ODD[kind]
    with pytest.raises(CheckpointError, match=message):
        derive_config("hubert", published_shapes(12, 768), settings)


@given(
    st.dictionaries(
        st.sampled_from(sorted(published_shapes(1, 32))), st.lists(st.integers(0, 3), max_size=3).map(tuple)
    )
)
def test_odd_shapes_end_in_a_message(shapes: dict[str, tuple[int, ...]]) -> None:
    for given_shapes in (shapes, published_shapes(1, 32) | shapes):
        with contextlib.suppress(CheckpointError):
            derive_config("hubert", given_shapes, {"conv_feature_layers": PUBLISHED})


def test_the_settings_of_a_lab_reach_the_config(tmp_path: Path) -> None:
    lab = Lab(
        "hubert", extra={"dropout": 0.2, "encoder_layerdrop": 0.01, "dropout_input": 0.3, "activation_fn": "relu"}
    )
    config = view_of(s3prl_base(lab, build_lab(lab).state_dict()), tmp_path).config
    assert config is not None
    assert (config["hidden_dropout"], config["layerdrop"], config["feat_proj_dropout"]) == (0.2, 0.01, 0.3)
    assert config["hidden_act"] == "relu"
