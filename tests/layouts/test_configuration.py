"""The configuration that transformers needs, derived from shapes and from what the labs say of their models."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechft_merge.errors import CheckpointError
from speechft_merge.layouts.configuration import MAX_CONVOLUTIONS, derive_config, derive_extractor, parse_convolutions
from speechft_merge.layouts.family import family_of

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


def test_blocks_count_by_whatever_name_their_list_has() -> None:
    shapes = {name.replace("encoder.layers.", "encoder.blocks."): s for name, s in published_shapes(12, 768).items()}
    assert family_of(shapes, "hubert").title == "HuBERT Base"


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
    "conformer": ({"layer_type": "conformer"}, "no class for layers of type conformer"),
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


@pytest.mark.parametrize(("words", "end"), [(51864, 50256), (51865, 50257), (51866, 50257)])
def test_a_whisper_of_openais_sizes_has_its_special_tokens_and_thirty_seconds(words: int, end: int) -> None:
    stems = [f"{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in range(4)]
    named = {f"{stem}.fc1.weight": (1536, 384) for stem in stems}
    named |= {"encoder.conv1.weight": (384, 80, 3), "encoder.embed_positions.weight": (1500, 384)}
    named |= {"decoder.embed_positions.weight": (448, 384), "decoder.embed_tokens.weight": (words, 384)}
    dims = {"n_audio_head": 6, "n_text_head": 3}
    config, extractor = derive_config("whisper", named, dims), derive_extractor(named, {}, {})
    assert (config["eos_token_id"], config["decoder_start_token_id"]) == (end, end + 1)
    assert (config["encoder_attention_heads"], config["decoder_attention_heads"]) == (6, 3)
    assert (config["encoder_layers"], config["decoder_ffn_dim"], config["vocab_size"]) == (4, 1536, words)
    assert (extractor["chunk_length"], extractor["nb_max_frames"]) == (30, 3000)
    with pytest.raises(CheckpointError, match="attention heads is not known: its file has no `dims`"):
        derive_config("whisper", named, {})
    with pytest.raises(CheckpointError, match="it has no encoder or no decoder"):
        derive_config("whisper", {name: shape for name, shape in named.items() if name.startswith("encoder")}, dims)
