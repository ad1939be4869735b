"""JSON of foreign files is bounded in what it becomes, not only in its length."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from speechft_merge.checkpoints import json_text
from speechft_merge.checkpoints.json_text import parse_json, read_json
from speechft_merge.errors import CheckpointError, NotFoundError


def test_a_large_honest_header_is_read() -> None:
    entry = {"dtype": "F32", "shape": [1024, 1024], "data_offsets": [0, 4194304]}
    header = {f"encoder.layers.{i}.feed_forward.intermediate_dense.weight": entry for i in range(80_000)}
    assert len(parse_json(json.dumps(header, separators=(",", ":")).encode(), "x", strict=True)) == 80_000


@pytest.mark.parametrize("value", ["[],", "{},", "1,", '"",', '{"a":1},'])
def test_many_small_values_are_refused_before_they_take_memory(value: str) -> None:
    content = "[" + value * json_text.MAX_VALUES + "0]"
    with pytest.raises(CheckpointError, match=r"x (holds some \d+ values|has \d+ bytes)"):
        parse_json(content.encode(), "x")


def test_commas_in_text_count_only_against_a_bound_that_no_text_reaches() -> None:
    assert parse_json(json.dumps({"a": "," * 500_000}).encode(), "x") == {"a": "," * 500_000}


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"[" * 100_000, b"1 2", b"9" * 5000])
def test_what_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^x is (not valid JSON|nested too deeply)"):
        parse_json(content, "x")


def test_only_where_it_is_strict_are_names_that_occur_twice_and_numbers_that_are_none_refused() -> None:
    assert parse_json(b'{"a":1,"a":NaN}', "x").keys() == {"a"}
    for content in (b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":-Infinity}'):
        with pytest.raises(CheckpointError):
            parse_json(content, "x", strict=True)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFoundError, match="not a regular file"):
        read_json(tmp_path / "pipe")
