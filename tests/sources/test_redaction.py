"""What nobody else may read is taken out of text: tokens, passwords, signatures."""

from __future__ import annotations

import pytest

from speechft_merge.sources import redaction
from speechft_merge.sources.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach http://alice:hunter2@host:8/x: no", "cannot reach http://host:8/x: no"),
        ("thrown while requesting PUT https://s3.x/a?X-Amz-Signature=ab&c=d", "thrown while requesting PUT https://s3.x/a?..."),
        ("cannot reach http://alice:p'ss@w\"rd@host:8/x", "cannot reach http://host:8/x"),
        ("('https://s3.x/a?b=c') failed", "('https://s3.x/a?...') failed"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ..."),
        ("the token hf_abcdefgh1234", "the token hf_..."),
        ("see https://hf.co/a/b, and C:?x=1", "see https://hf.co/a/b, and C:?x=1"),
        ("alice@host and what? nothing", "alice@host and what? nothing"),
    ],
)  # fmt: skip
def test_what_is_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_the_token_of_the_user_is_found_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct horse")
    assert redacted("who is correct horse?") == "who is ...?"
    monkeypatch.setenv("HF_TOKEN", "a")
    assert redacted("a merge") == "a merge"
    monkeypatch.setattr(redaction, "_read_stored", lambda: "battery-staple")
    monkeypatch.setitem(redaction.sys.modules, "huggingface_hub.utils", object())  # type: ignore[arg-type]
    assert redacted("x battery-staple y") == "x ... y"
