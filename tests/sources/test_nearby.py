"""A slip in a path is answered with the nearest names that exist, at every level of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from speechft_merge.errors import NotFoundError, TemporaryError
from speechft_merge.sources.nearby import nearest_paths
from speechft_merge.sources.reference import HubReference, parse_reference, without_path

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models/hubert-base", "exp/asr-finetuned", "exp/last.ckpt"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("models/huber-base", "models/hubert-base"),
        ("modles/hubert-base", "models/hubert-base"),
        ("model/hubert-bse", "models/hubert-base"),
        ("exp/lst.ckpt", "exp/last.ckpt"),
        ("./exp/asr-finetune", "exp/asr-finetuned"),
        ("MODELS/Hubert-Base", "models/hubert-base"),
    ],
)
def test_the_nearest_path_is_found(text: str, nearest: str) -> None:
    assert nearest_paths(text)[0] == nearest


@pytest.mark.parametrize("text", ["nothing/like-it", "a" * 5000, "~nobody-of-that-name/x", "nul\0", ""])
def test_of_what_is_like_nothing_there_is_none(text: str) -> None:
    assert nearest_paths(text) == []


@pytest.mark.parametrize("text", ["models/huber-base", "exp/lst.ckpt", "last.ckpt", "a/b/c", "models/x#student"])
def test_what_looks_local_is_no_repository(text: str) -> None:
    with pytest.raises(NotFoundError, match="no local path of that name"):
        parse_reference(text)


def test_a_link_that_leads_nowhere_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "exp/best.ckpt").symlink_to("epoch3.ckpt")
    for text in ("exp/best.ckpt", f"{tmp_path}/exp/best.ckpt", "exp/best.ckpt#student"):
        with pytest.raises(NotFoundError, match=r"exp/best\.ckpt is a link to epoch3\.ckpt, which leads nowhere$"):
            parse_reference(text)


@pytest.mark.parametrize("text", ["facebook/hubert-base-ls960", "modles/hubert-base", "hf://models/x", "models/x@main"])
def test_what_may_be_a_repository_is_one(text: str) -> None:
    assert isinstance(parse_reference(text), HubReference)


def test_a_link_that_leads_nowhere_is_never_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "models/gone").symlink_to("elsewhere")
    assert nearest_paths("models/gon") == []


@pytest.mark.parametrize("suffix", ["", "@main", ":model.bin", "@main:model.bin", "#student"])
def test_an_error_of_the_hub_s_says_that_no_such_path_is_there_either(suffix: str) -> None:
    told = without_path(TemporaryError("cannot reach it", hint="try again"), f"exp/asr-finetune{suffix}")
    assert isinstance(told, TemporaryError)
    assert told.message == "cannot reach it; exp/asr-finetune is no local path either"
    assert told.found == "exp/asr-finetuned"
    assert told.hint == "try again"


def test_below_a_folder_that_is_there_it_is_said_of_anything() -> None:
    told = without_path(TemporaryError("cannot reach it"), "exp/run:2")
    assert told.message == "cannot reach it; exp/run is no local path either"


@pytest.mark.parametrize("text", ["hf://exp/asr-finetune", "facebook/hubert@main", "facebook/hubert:model.bin"])
def test_of_what_is_written_as_the_hub_s_only_the_hub_is_spoken(text: str) -> None:
    error = TemporaryError("cannot reach it")
    assert without_path(error, text) is error


def test_what_the_hub_lists_is_not_hidden_by_paths() -> None:
    error = NotFoundError("no such file", found="model.safetensors")
    assert without_path(error, "exp/asr-finetune:model.bin") is error
