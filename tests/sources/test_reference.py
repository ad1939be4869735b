"""What a user may call a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from speechft_merge.errors import NotFoundError
from speechft_merge.sources.reference import HubReference, parse_reference

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which no path is there by chance."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("org/name", "org/name", None, None),
        ("org/name@branch", "org/name", "branch", None),
        ("org/name@v1.0", "org/name", "v1.0", None),
        (f"org/name@{SHA}", "org/name", SHA, None),
        ("org/name@refs/pr/2", "org/name", "refs/pr/2", None),
        ("org/name@feature/x", "org/name", "feature/x", None),
        ("org/name:model.bin", "org/name", None, "model.bin"),
        ("org/name:sub/model.bin", "org/name", None, "sub/model.bin"),
        ("org/name@refs/pr/2:sub", "org/name", "refs/pr/2", "sub"),
        ("org/name:a:b@c", "org/name", None, "a:b@c"),
        ("0rg/na.me_x-y", "0rg/na.me_x-y", None, None),
        ("hf://org/name", "org/name", None, None),
        ("hf://org/name/", "org/name", None, None),
        ("hf://org/name/sub/model.bin", "org/name", None, "sub/model.bin"),
        ("hf://org/name@branch", "org/name", "branch", None),
        ("hf://org/name@branch/model.bin", "org/name", "branch", "model.bin"),
        ("hf://org/name@feature%2Fx/model.bin", "org/name", "feature/x", "model.bin"),
        ("hf://org/name@refs/pr/2", "org/name", "refs/pr/2", None),
        ("hf://org/name@refs/pr/2/sub/model.bin", "org/name", "refs/pr/2", "sub/model.bin"),
        ("hf://org/name@refs%2Fpr%2F2/model.bin", "org/name", "refs/pr/2", "model.bin"),
        ("hf://org/name@refs/convert/parquet/x", "org/name", "refs/convert/parquet", "x"),
        ("hf://org/name@branch:model.bin", "org/name", "branch", "model.bin"),
    ],
)
def test_a_repository_its_revision_and_a_path_in_it(
    text: str, repo: str, revision: str | None, path: str | None
) -> None:
    assert parse_reference(text) == HubReference(repo, revision, path)


@pytest.mark.parametrize(
    "text",
    ["org/name", "org/name@branch", "org/name:model.bin", "org/name@refs/pr/2:sub/model.bin"],
)
def test_a_reference_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize("text", ["org/name", "org/name@branch", "org/name:model.bin"])
def test_a_path_of_the_same_name_wins(text: str, tmp_path: Path) -> None:
    (tmp_path / text).mkdir(parents=True)
    assert parse_reference(text) == Path(text)


def test_hf_always_means_the_hub(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_reference("hf://org/name") == HubReference("org/name")


@pytest.mark.parametrize("text", ["./org/name", "../name", "/org/name", "~/name", "~nobody-of-that-name/x"])
def test_what_is_written_like_a_path_is_never_a_repository(text: str) -> None:
    with pytest.raises(NotFoundError, match=f"^{re.escape(text)}: no local path of that name$"):
        parse_reference(text)


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "model.safetensors",
        "a/b/c",
        "a/b/model.safetensors",
        "org/",
        "/name",
        "org/na me",
        "org/name@",
        "org/name:",
        "org/name@:x",
        "org/name:/etc/passwd",
        "org/name:../other",
        "org/name:sub/../../other",
        "-org/name",
        "org/.name",
        "a\0/b",
        "https://huggingface.co/org/name",
        "org/" + "n" * 97,
        "x" * 5000,
        "hf://",
        "hf://name",
        "hf://org/name@",
        "hf://org/name@/model.bin",
        "hf://org/name/../other",
        "hf://org/name@branch/../../other",
        "hf://org/name?x",
        "hf://org/na me/model.bin",
        "hf://org/" + "n" * 97,
        "hf://org/name:../other",
    ],
)
def test_what_cannot_be_a_model_is_refused(text: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        parse_reference(text)
    assert len(str(caught.value)) < 400


def test_the_refusal_says_how_a_repository_is_written() -> None:
    with pytest.raises(NotFoundError, match=r"hubert: no local path.*org/name@revision:file"):
        parse_reference("hubert")
