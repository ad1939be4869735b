"""How long is waited before a request is tried again."""

from __future__ import annotations

import pytest

from speechft_merge.sources import retries


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each wait; none is waited in truth."""
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    return waits


def test_the_wait_doubles_and_has_an_end(waited: list[float]) -> None:
    for tries in range(1, 12):
        retries.pause(tries)
    assert all(0.5 * full <= wait <= full for wait, full in zip(waited, (0.5, 1, 2, 4, *[8] * 7), strict=True))


def test_the_wait_is_what_the_server_says_within_reason(waited: list[float]) -> None:
    for seconds in (0.0, 7.0, 1e9):
        retries.pause(1, seconds)
    assert waited == [0, 7, retries.LONGEST_WAIT]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "37"}, 37),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
        ({"Retry-After": "²"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "9" * 5000}, 999_999_999),
        ({"RateLimit": '"api";r=0;t=37'}, 38),
        ({"RateLimit": '"api";r=12;t=37'}, None),
        ({"RateLimit": '"api";r=12;t=37', "Retry-After": "5"}, 5),
        ({"RateLimit": '"api";r=0;t=37', "Retry-After": "5"}, 38),
    ],
)
def test_what_the_server_says(headers: dict[str, str], seconds: float | None) -> None:
    assert retries.retry_after(headers) == seconds
