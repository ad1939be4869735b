"""Every request to the Hub ends: whatever its server does, by the policy of one place."""

from __future__ import annotations

import functools
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.utils import _http, httpx  # type: ignore[attr-defined]

from speechft_merge.sources import client, retries

Answer = Callable[[socket.socket], None]
Serve = Callable[[Answer], str]
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers every request in the same way; its URL."""
    stopped = threading.Event()
    listening: list[socket.socket] = []

    def serve(answer: Answer) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(0.1)
        listening.append(server)

        def work() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    continue
                with connection:
                    connection.settimeout(5)
                    try:
                        while b"\r\n\r\n" not in connection.recv(1 << 16):
                            pass
                        answer(connection)
                    except OSError:
                        continue

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/"

    yield serve
    stopped.set()
    for server in listening:
        server.close()


@pytest.fixture
def bounded() -> Iterator[Any]:
    with httpx.Client(follow_redirects=True, timeout=None, trust_env=False) as made:
        made.send = functools.partial(client._send, made.send)
        yield made


def answering(head: bytes, body: bytes = b"") -> Answer:
    return lambda connection: connection.sendall(
        head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )


def dripping(pieces: bytes, before: bytes = b"") -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(before)
        for at in range(len(pieces)):
            connection.sendall(pieces[at : at + 1])
            time.sleep(0.02)

    return answer


def test_an_answer_below_the_least_rate_is_dropped(serve: Serve, bounded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WINDOW", 0.3)
    url = serve(dripping(bytes(1000), HEAD + b"Content-Length: 1000\r\n\r\n"))
    started = time.monotonic()
    with pytest.raises(httpx.ReadTimeout, match="bytes in"):
        bounded.get(url)
    assert time.monotonic() - started < 10


def test_headers_that_come_a_letter_at_a_time_are_not_waited_for(
    serve: Serve, bounded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WINDOW", 0.3)
    url = serve(dripping(b"X" * 1000, HEAD))
    with pytest.raises(httpx.ReadTimeout, match=r"no end within 0\.4 s"):
        bounded.get(url, timeout=0.2)


def test_a_piece_without_end_is_not_waited_for(serve: Serve, bounded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, of which none is ever whole: no byte is late, and nothing ever comes."""
    monkeypatch.setattr(client, "WINDOW", 0.4)
    url = serve(dripping(b"4;" + b"a" * 1000, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"))
    started = time.monotonic()
    with pytest.raises(httpx.ReadTimeout, match="no piece within"), bounded.stream("GET", url) as response:
        list(response.iter_raw())
    assert time.monotonic() - started < 10


def test_a_list_of_very_many_is_cut_off(serve: Serve, bounded: Any) -> None:
    body = gzip.compress(b"[" + b'{"rfilename":"a"},' * 500_000 + b"{}]")
    with pytest.raises(httpx.DecodingError, match="objects"):
        bounded.get(serve(answering(HEAD + b"Content-Encoding: gzip\r\n", body)))


def test_a_silent_server_is_not_waited_for_where_the_client_sets_no_bound(
    serve: Serve, bounded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SILENCE", 0.2)
    with pytest.raises(httpx.ReadTimeout):
        bounded.post(serve(lambda _: time.sleep(2)), content=b"x")


def test_a_fast_answer_passes_as_it_is(serve: Serve, bounded: Any) -> None:
    body = bytes(range(256)) * 4000
    url = serve(answering(HEAD, body))
    assert bounded.get(url).content == body
    with bounded.stream("GET", url) as response:
        assert b"".join(response.iter_raw()) == body


def test_an_answer_that_unpacks_to_more_than_memory_is_cut_off(
    serve: Serve, bounded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LONGEST_ANSWER", 1 << 20)
    url = serve(answering(HEAD + b"Content-Encoding: gzip\r\n", gzip.compress(bytes(50 << 20))))
    with pytest.raises(httpx.DecodingError, match="more than"):
        bounded.get(url)


def test_redirects_have_an_end(serve: Serve, bounded: Any) -> None:
    url = serve(answering(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n"))
    with pytest.raises(httpx.TooManyRedirects):
        bounded.get(url)


@pytest.mark.parametrize(
    ("asked", "limited"),
    [
        (b"Retry-After: 99999", "60"),
        (b"Retry-After: 7", "7"),
        (b"Retry-After: \xc2\xb2", None),
        (b"Retry-After: Wed, 21 Oct 2099 07:28:00 GMT", "60"),
        (b'RateLimit: "api";r=0;t=99999', "60"),
        (b'RateLimit: "api";r=5;t=9', None),
        (b"X: y", None),
    ],
)
def test_what_a_server_asks_to_wait_is_limited_for_the_client_too(
    asked: bytes, limited: str | None, serve: Serve, bounded: Any
) -> None:
    response = bounded.get(serve(answering(b"HTTP/1.1 429 Slowly\r\n" + asked + b"\r\n")))
    assert response.headers.get("Retry-After") == limited
    assert "RateLimit" not in response.headers


def test_the_limit_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, seconds in (("5", 5.0), ("0", 0.0), ("x", 60.0), ("-1", 60.0), ("inf", 60.0), ("nan", 60.0)):
        monkeypatch.setenv(retries.VARIABLE, text)
        assert retries.longest_wait() == seconds


def test_the_shared_client_is_bounded_once_and_again_when_it_is_made_anew() -> None:
    before = _http._GLOBAL_CLIENT_FACTORY
    try:
        client.bound_client()
        first, factory = get_session(), _http._GLOBAL_CLIENT_FACTORY
        client.bound_client()
        assert get_session() is first
        assert _http._GLOBAL_CLIENT_FACTORY is factory
        _http.close_session()
        assert isinstance(get_session().send, functools.partial)
    finally:
        set_client_factory(before)
