import json
from pathlib import Path
from typing import Any

import pytest
import torch
from container_files import Tensors, assert_holds, content, saved
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save
from transformers import HubertConfig, HubertModel

from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.errors import CheckpointError, NotFoundError

INDEX = "model.safetensors.index.json"


def tiny_model() -> HubertModel:
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    return HubertModel(HubertConfig(**sizes))


def indexed(folder: Path, weight_map: Any, shards: dict[str, Tensors]) -> str:
    """A folder of shards under an index that may not fit them."""
    for name, tensors in shards.items():
        (folder / name).write_bytes(save(dict(tensors)))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return str(folder)


A, B = {"a": torch.arange(3.0)}, {"b": torch.arange(4)}
SHARDS: dict[str, Tensors] = {"one.safetensors": A, "two.safetensors": B}
MAP = {"a": "one.safetensors", "b": "two.safetensors"}


# what libraries write
def test_what_transformers_writes_in_shards_reads_back(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = len(list(tmp_path.glob("model-*.safetensors")))
    checkpoint = open_checkpoint(str(tmp_path))
    assert shards > 1
    assert checkpoint.container == f"sharded safetensors ({shards} files)"
    assert_holds(checkpoint, model.state_dict())
    assert checkpoint.parameters == sum(tensor.numel() for tensor in model.state_dict().values())
    checkpoint.close()


@pytest.mark.parametrize("safe", [True, False])
def test_what_the_hub_s_library_writes_in_shards_reads_back(safe: bool, tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.randn(8, i + 1) for i in range(12)}
    save_torch_state_dict(state, tmp_path, max_shard_size=600, safe_serialization=safe)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.container.startswith("sharded safetensors (" if safe else "sharded torch zip (")
    assert len(checkpoint.sources) == len(list(tmp_path.iterdir())) - 1 > 1
    assert_holds(checkpoint, state)
    checkpoint.close()


def test_an_index_can_be_named_itself(tmp_path: Path) -> None:
    folder = indexed(tmp_path, MAP, SHARDS)
    assert_holds(open_checkpoint(f"{folder}/{INDEX}"), A | B)


def test_one_shard_of_a_model_can_be_named_alone(tmp_path: Path) -> None:
    assert_holds(open_checkpoint(f"{indexed(tmp_path, MAP, SHARDS)}/two.safetensors"), B)


def test_a_shard_is_told_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    folder = indexed(tmp_path, MAP, SHARDS)
    (tmp_path / "two.safetensors").write_bytes(saved(B))
    assert_holds(open_checkpoint(folder), A | B)


def test_an_index_of_one_shard_reads_back(tmp_path: Path) -> None:
    assert_holds(open_checkpoint(indexed(tmp_path, {"a": "one.safetensors"}, SHARDS)), A)


def test_tensors_that_cannot_be_read_are_told_of_all_shards(tmp_path: Path) -> None:
    lazy = torch.ones(2, dtype=torch.complex64).conj()
    (tmp_path / "1.bin").write_bytes(saved({"a": torch.ones(1), "x": lazy}))
    (tmp_path / "2.bin").write_bytes(saved({"b": torch.ones(2), "y": lazy}))
    weight_map = {"a": "1.bin", "x": "1.bin", "b": "2.bin", "y": "2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.unreadable.keys() == {"x", "y"}
    assert_holds(checkpoint, {"a": torch.ones(1), "b": torch.ones(2)})


def test_each_tensor_is_read_from_its_own_shard(tmp_path: Path) -> None:
    spans = open_checkpoint(indexed(tmp_path, MAP, SHARDS)).tensors
    assert spans["a"].source is not spans["b"].source
    assert spans["a"].storage_key != spans["b"].storage_key
    assert len(content(spans["b"])) == 32


# where index and shards disagree
def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = indexed(tmp_path, MAP, {"one.safetensors": A})
    with pytest.raises(NotFoundError, match=r"names 2 shards; missing: two\.safetensors"):
        open_checkpoint(folder)


def test_a_shard_that_is_a_folder_is_missing(tmp_path: Path) -> None:
    folder = indexed(tmp_path, MAP, {"one.safetensors": A})
    (tmp_path / "two.safetensors").mkdir()
    with pytest.raises(NotFoundError, match=r"missing: two\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("weight_map", "name"),
    [(MAP | {"c": "two.safetensors"}, "c"), (MAP | {"a": "two.safetensors", "x": "one.safetensors"}, "[ax]")],
)
def test_a_tensor_that_its_shard_lacks_is_refused_by_name(weight_map: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"says that '{name}' lies in .* that shard has no such tensor"):
        open_checkpoint(indexed(tmp_path, weight_map, SHARDS))


def test_a_tensor_in_two_shards_is_refused_by_name(tmp_path: Path) -> None:
    folder = indexed(tmp_path, MAP, {"one.safetensors": A, "two.safetensors": A | B})
    with pytest.raises(CheckpointError, match=r"'a' lies in two shards, one\.safetensors and two\.safetensors"):
        open_checkpoint(folder)


def test_a_damaged_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = indexed(tmp_path, MAP, SHARDS)
    (tmp_path / "two.safetensors").write_bytes(save(B)[:-1])
    with pytest.raises(CheckpointError, match=r"two\.safetensors is \d+ bytes long .* cut short"):
        open_checkpoint(folder)


def test_shards_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(indexed(tmp_path, {"a": "one.safetensors"}, {"one.safetensors": {}}))


def test_an_index_that_names_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="JSON"):
        open_checkpoint(indexed(tmp_path, {"a": INDEX}, {}))


# names that lead elsewhere
OUTSIDE = [
    "../one.safetensors",
    "/etc/passwd",
    "sub/one.safetensors",
    "./one.safetensors",
    "..",
    ".",
    "",
    "a\\b",
    "a\0b",
]


@pytest.mark.parametrize("file", [*OUTSIDE, 3, None, ["one.safetensors"], {"a": "one.safetensors"}, True], ids=repr)
def test_a_shard_outside_the_folder_is_refused_by_name(file: object, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(save(A))
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "one.safetensors").write_bytes(save(A))
    folder = indexed(tmp_path / "model", {"a": file}, {"one.safetensors": A})
    with pytest.raises(CheckpointError, match="shards must be in the index's folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "file", ["~", "*.safetensors", "one.safetensors ", "ONE.safetensors", "C:one", "\ud800", "x" * 9999]
)
def test_a_name_is_a_name_and_no_pattern(file: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        open_checkpoint(indexed(tmp_path, {"a": file}, SHARDS))


# shards without an index
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("width", [1, 5])
def test_shards_without_an_index_are_joined_if_all_are_there(first: int, width: int, tmp_path: Path) -> None:
    names = [f"model-{first + i:0{width}}-of-{2:0{width}}.safetensors" for i in (0, 1)]
    for name, tensors in zip(names, (A, B), strict=True):
        (tmp_path / name).write_bytes(save(dict(tensors)))
    checkpoint = open_checkpoint(str(tmp_path))
    assert_holds(checkpoint, {**A, **B})
    checkpoint.close()


UNJOINED = {
    "one missing": (["m-00001-of-00003.bin", "m-00003-of-00003.bin"], r"2 shards; missing: m-00002-of-00003\.bin;"),
    "too many": ([f"m-0000{i}-of-00002.bin" for i in (0, 1, 2)], "found 3 shards;"),
    "two models": (
        [f"{stem}-0000{i}-of-00002.bin" for stem in ("a", "b") for i in (1, 2)],
        r"more than one model: a-\*-of-00002\.bin, b-\*-of-00002\.bin",
    ),
    "one twice": (["m-1-of-2.bin", "m-01-of-2.bin", "m-2-of-2.bin"], "found 3 shards;"),
    "none by their count": (["m-0-of-0.bin"], "found 1 shard;"),
    "another file": (["m-1-of-2.bin", "m-2-of-2.bin", "extra.pt"], r"and other weights; found extra\.pt"),
    "one of very many": (["m-1-of-999999.bin"], r"missing: m-000002-of-999999\.bin, .*"),
}


@pytest.mark.parametrize("kind", UNJOINED)
def test_of_shards_that_cannot_be_joined_none_is_to_be_named(kind: str, tmp_path: Path) -> None:
    names, told = UNJOINED[kind]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NotFoundError, match=f"shards without their index.*{told}") as refused:
        open_checkpoint(str(tmp_path))
    assert "name one of them" not in str(refused.value)


# what is no index
NOT_AN_INDEX = {
    "nothing": b"",
    "words": b"hello",
    "half of it": b'{"weight_map": {"a": "one',
    "no text": b"\xff\xfe{}",
    "a safetensors file": save(A),
    "a number of 5000 digits": b'{"weight_map": ' + b"9" * 5000 + b"}",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"weight_map":' * 100_000,
}
NO_MAP = ["{}", "[]", '"a"', "null", "3", '{"weight_map": null}', '{"weight_map": {}}', '{"weight_map": ["a"]}',
          '{"weight_map": "one.safetensors"}', '{"metadata": {"weight_map": {"a": "b"}}}']  # fmt: skip


@pytest.mark.parametrize("index", NOT_AN_INDEX.values(), ids=NOT_AN_INDEX)
def test_an_index_that_is_not_json_is_refused(index: bytes, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(CheckpointError, match=r"is not valid JSON|is nested too deeply"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("index", NO_MAP)
def test_an_index_without_a_weight_map_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_checkpoint(str(tmp_path))


def test_an_index_above_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = indexed(tmp_path, MAP, SHARDS)
    monkeypatch.setattr("speechft_merge.checkpoints.json_text.MAX_TEXT", 10)
    with pytest.raises(CheckpointError, match="bytes of JSON, at most 10 are allowed"):
        open_checkpoint(folder)


def test_the_tensors_of_all_shards_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.opening.MAX_TENSORS", 1)
    with pytest.raises(CheckpointError, match="its shards hold more than 1 tensors"):
        open_checkpoint(indexed(tmp_path, MAP, SHARDS))
