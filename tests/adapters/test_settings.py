"""The scale of LoRA: peft's rules, and settings under which W + scale * B A is not the model."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from speechft_merge.adapters.settings import MAX_LENGTH, Settings, read_settings
from speechft_merge.checkpoints import open_checkpoint
from speechft_merge.errors import MismatchError

if TYPE_CHECKING:
    from pathlib import Path


def settings(folder: Path, **config: Any) -> Settings | None:
    save_file({"q.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config))
    with open_checkpoint(str(folder)) as model:
        return read_settings(model)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": 6}, 1.5),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"layers.1.q_proj": 2}}, 2.0),
        ({"alpha_pattern": {"^encoder.*q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"^layers.*q_proj": 2}}, 2.0),
        ({"alpha_pattern": {r"layers\.\d+\.q_proj": 2}}, 0.5),
        ({"init_lora_weights": "gaussian"}, 2.0),
        ({"lora_bias": False, "use_dora": False, "target_modules": ["q_proj"], "inference_mode": True}, 2.0),
    ],
)
def test_the_scale_is_pefts(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    found = settings(tmp_path, **config)
    assert found is not None
    assert found.scale("encoder.layers.0.q_proj", 4) == scale


PATHS = st.lists(st.sampled_from(["encoder", "layers", "q_proj", "0", "1", "10", "x"]), min_size=1, max_size=5)
PIECES = st.sampled_from(
    ["encoder", "layers", "q_proj", "0", "1", ".", r"\.", ".*", ".+", r"\d+", r"\d", "x", "*", "+"]
)


@given(PATHS, st.lists(PIECES, min_size=1, max_size=6), st.sampled_from(["", "^"]), st.sampled_from(["", "$"]))
def test_a_pattern_fits_where_it_does_in_peft(path: list[str], pieces: list[str], start: str, end: str) -> None:
    """Python's own engine, with the expression of peft's get_pattern_key; or it is refused."""
    from speechft_merge.adapters.settings import _PATTERN, _compile

    pattern, name = start + "".join(pieces) + end, ".".join(path)
    if not _PATTERN.fullmatch(pattern):
        return
    assert (_compile(pattern).fullmatch(name) is not None) == (re.match(rf"(.*\.)?({pattern})$", name) is not None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "IA3"}, "'IA3', only LoRA"),
        ({"use_dora": True}, "has use_dora, only plain LoRA"),
        ({"use_something_new": {"a": 1}}, "has use_something_new"),
        ({"lora_bias": True}, "has lora_bias"),
        ({"trainable_token_indices": [1]}, "has trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base as well"),
        ({"lora_alpha": "many"}, "lora_alpha 'many', expected a number"),
        ({"lora_alpha": float("nan")}, "expected a number"),
        ({"lora_alpha": 10**400}, "expected a number"),
        ({"use_rslora": "false"}, "has use_rslora"),
        ({"alpha_pattern": {r"layers\.\d*\.q": 1}}, "no name of layers"),
        ({"alpha_pattern": {"word+": 1}}, "no name of layers"),
        ({"alpha_pattern": {r"\d+1q": 1}}, "no name of layers"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "no name of layers"),
        ({"alpha_pattern": {"q|v": 1}}, "no name of layers"),
        ({"alpha_pattern": {"a" * (MAX_LENGTH + 1): 1}}, "no name of layers"),
        ({"alpha_pattern": ["q"]}, "expected a table"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=re.escape(told)):
        settings(tmp_path, **config)


def test_a_rank_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found is not None
    with pytest.raises(MismatchError, match=r"rank 2 in 'q', its adapter_config.json states 4"):
        found.scale("q", 2)
    with_exceptions = settings(tmp_path, rank_pattern={"q": 2})
    assert with_exceptions is not None
    assert with_exceptions.scale("q", 2) == 4


def test_no_pattern_takes_long(tmp_path: Path) -> None:
    """Measured in steps of a clock that only this process moves, and only against forever."""
    found = settings(tmp_path, alpha_pattern={".*a" * 60 + "b": 1})
    assert found is not None
    begin = time.process_time()
    found.scale("a" * MAX_LENGTH, 4)
    assert time.process_time() - begin < 20
