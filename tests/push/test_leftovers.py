"""What becomes of the files that a repository holds: loaders say what they would take from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import build

from speechft_merge.push.leftovers import decide_changes

OUTPUT = {"model.safetensors", "config.json", "processor_config.json", "README.md", "speechft_merge.json"}


@pytest.mark.parametrize("variant", [None, "fp16", "int8-v2", "a.b"])
@pytest.mark.parametrize("shards", ["1GB", "60KB"])
def test_weights_that_transformers_saved_go_whatever_their_variant_and_number(
    variant: str | None, shards: str, tmp_path: Path
) -> None:
    model: Any = build("Hubert")
    model.save_pretrained(tmp_path, variant=variant, max_shard_size=shards)
    there = {path.name for path in tmp_path.iterdir()}
    assert len(there) > 2 if shards == "60KB" else len(there) == 2
    changes = decide_changes(there, OUTPUT)
    assert set(changes.deleted) == there - OUTPUT
    assert changes.kept == ()
    torch_names = {name.replace("model", "pytorch_model").replace(".safetensors", ".bin") for name in there - OUTPUT}
    assert set(decide_changes(torch_names, OUTPUT).deleted) == torch_names


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapter.fra.safetensors",
        "adapter.cmn-script_simplified.bin", "model.safetensors.index.fp32.json", "pytorch_model.bin.index.json",
        "model-00001-of-00002.fp16.safetensors", "tf_model.h5", "tf_model.h5.index.json", "flax_model.msgpack",
        "flax_model-00001-of-00003.msgpack", "tf_model-00002-of-00002.h5", "model.ckpt.index",
        "model.ckpt.data-00000-of-00001", "consolidated.safetensors", "consolidated.00.pth",
        "consolidated.safetensors.index.json", "merged_model.pt", "similarity.json", "similarity.png",
        "preprocessor_config.json", "tokenizer.json", "vocab.json", "generation_config.json", "chat_template.jinja",
        "language_model/5gram.bin",
    ],
)  # fmt: skip
def test_what_would_be_loaded_instead_of_the_merge_or_along_with_it_goes(name: str) -> None:
    assert decide_changes([name], OUTPUT).deleted == (name,)


@pytest.mark.parametrize("subfolder", ["", "onnx/", "original/", "checkpoint-500/"])
@pytest.mark.parametrize(
    "name",
    ["model.onnx", "model-q4.gguf", "hubert_base_ls960.pt", "last.ckpt", "whisper.nemo", "model_old.safetensors"],
)
def test_weights_for_other_loaders_stay_and_are_called_weights(name: str, subfolder: str) -> None:
    changes = decide_changes([subfolder + name], OUTPUT)
    assert changes.kept == (subfolder + name,)
    assert changes.other_weights == [subfolder + name]


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_config.json", "pytorch_model.bin"])
def test_a_model_in_a_subfolder_stays_and_is_named(name: str) -> None:
    changes = decide_changes([f"earlier/{name}"], OUTPUT)
    assert (changes.deleted, changes.other_weights) == ((), [f"earlier/{name}"])


@pytest.mark.parametrize(
    "name",
    [
        "notes.md",
        "LICENSE",
        "modeling_x.py",
        "training_args.bin",
        "optimizer.pt",
        "sub/rng_state_0.pth",
        "model_card.md",
    ],
)
def test_what_is_no_weights_stays_without_a_word_on_weights(name: str) -> None:
    changes = decide_changes([name], OUTPUT)
    assert (changes.deleted, changes.kept, changes.other_weights) == ((), (name,), [])


@given(st.sets(st.sampled_from([*OUTPUT, "a.txt", "pytorch_model.bin", "vocab.json", "x/model.safetensors"])))
def test_every_file_but_the_hubs_own_has_one_fate(there: set[str]) -> None:
    changes = decide_changes({*there, ".gitattributes"}, OUTPUT)
    fates = [*changes.replaced, *changes.deleted, *changes.kept]
    assert sorted(fates) == sorted(there)
    assert set(changes.replaced) == there & OUTPUT
