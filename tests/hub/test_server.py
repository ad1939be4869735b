"""The server is held to what the real client makes of it, and its faults to what goes over the wire."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from harness import READER, STRANGER, UNKNOWN, WRITER, Files, HubServer, StartHub
from server import card

CONFORMANCE = Path(__file__).with_name("conformance.py")
CONTENT = bytes(range(256)) * 16
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MODEL: Files = {"config.json": "{}", "model.safetensors": CONTENT}
RESOLVE = "/alice/model/resolve/main/model.safetensors"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(
    url: str, path: str = "", *, method: str = "GET", token: str | None = None, body: object = None, **headers: str
) -> Answer:
    """One request, no redirect followed; `body` is sent as JSON unless it is bytes."""
    parts = urlsplit(url + path)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", sent, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def signed(hub: HubServer) -> str:
    """The URL that a download of the weights is sent on to."""
    hub.repo("alice/model", MODEL)
    return ask(hub.endpoint, RESOLVE).headers["Location"]


def conform(hub: HubServer, **env: str) -> None:
    ran = subprocess.run(
        [sys.executable, CONFORMANCE, "alice"],
        env=os.environ | hub.env() | env,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_client_over_lfs(hub: HubServer) -> None:
    conform(hub)
    assert hub.log("PUT /lfs/")
    assert not hub.log("xet")


def test_client_over_xet(hub: HubServer) -> None:
    pytest.importorskip("hf_xet")
    conform(hub, HF_HUB_DISABLE_XET="0")
    assert hub.log("xet-write-token")
    assert hub.log("xet-read-token")


def test_server_without_xet_has_no_token_for_it(start_hub: StartHub) -> None:
    hub = start_hub()
    hub.repo("alice/model", MODEL)
    assert ask(hub.endpoint, "/api/models/alice/model/xet-write-token/main", token=WRITER).status == 404


# access


@pytest.mark.parametrize(
    ("repo", "token", "status", "code"),
    [
        ("open", None, 200, None),
        ("open", UNKNOWN, 401, None),
        ("missing", None, 401, "RepoNotFound"),
        ("missing", WRITER, 404, "RepoNotFound"),
        ("private", None, 401, "RepoNotFound"),
        ("private", STRANGER, 404, "RepoNotFound"),
        ("private", READER, 200, None),
        ("gated", None, 401, "GatedRepo"),
        ("gated", STRANGER, 403, "GatedRepo"),
        ("gated", READER, 200, None),
    ],
)
def test_who_may_download(hub: HubServer, repo: str, token: str | None, status: int, code: str | None) -> None:
    if repo != "missing":
        hub.repo(f"alice/{repo}", MODEL, private=repo == "private", gated=repo == "gated")
    answer = ask(hub.endpoint, f"/alice/{repo}/resolve/main/config.json", token=token)
    assert (answer.status, answer.headers["X-Error-Code"]) == (status, code)
    assert (answer.headers["X-Error-Message"] is None) == (status == 200)


@pytest.mark.parametrize(
    ("token", "query", "status"),
    [
        (None, "", 401),
        (UNKNOWN, "", 401),
        (READER, "", 403),
        (READER, "?create_pr=1", 403),
        (STRANGER, "", 403),
        (STRANGER, "?create_pr=1", 200),
        (WRITER, "", 200),
    ],
)
def test_who_may_commit(hub: HubServer, token: str | None, query: str, status: int) -> None:
    before = hub.repo("alice/model", MODEL)
    lines = [
        {"key": "header", "value": {"summary": "Add a", "description": ""}},
        {"key": "file", "value": {"path": "a", "content": base64.b64encode(b"a").decode(), "encoding": "base64"}},
    ]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    url = f"/api/models/alice/model/commit/main{query}"
    answer = ask(hub.endpoint, url, method="POST", token=token, body=body)
    assert answer.status == status
    assert (hub.stored("alice/model").sha == before) == (query != "" or status != 200)
    assert ("refs/pr/1" in hub.stored("alice/model").refs) == (query != "" and status == 200)


def test_model_info_of_a_gated_repo_is_open(hub: HubServer) -> None:
    hub.repo("alice/model", MODEL, gated=True)
    assert json.loads(ask(hub.endpoint, "/api/models/alice/model").body)["gated"] == "manual"


def test_unknown_pages(hub: HubServer) -> None:
    assert ask(hub.endpoint, "/api/nope").status == 404
    assert ask(hub.endpoint, "/api/whoami-v2", method="POST").status == 405


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("license: mit\nbase_model: a/b\nbase_model_relation: merge\ntags: [merge]", None),
        ("base_model:\n- a/b\n- c-d.e/f_g", None),
        ("base_model: [./a/b]", '"base_model[0]" with value "./a/b" is not valid'),
        ("base_model: [a/b, /home/me/b]", '"base_model[1]" with value "/home/me/b" is not valid'),
        ("base_model: {a: b}", '"base_model" must be'),
        ("base_model_relation: mixture", '"base_model_relation" must be one of [adapter'),
        ("license: [mit]", '"license" must be a string'),
        ("tags: merge", '"tags" must be an array'),
        ("license: [mit", "Failed to parse YAML"),
        ("just words", "YAML metadata must be a mapping"),
    ],
)
def test_model_cards(metadata: str, error: str | None) -> None:
    wrong = card.errors(f"---\n{metadata}\n---\n# Title\n")
    assert len(wrong) == (1 if error else 0), wrong
    assert "".join(wrong).startswith(error or "")


# transfer


def test_download_of_a_large_file_goes_to_another_origin(hub: HubServer) -> None:
    sha = hub.repo("alice/model", MODEL)
    answer = ask(hub.endpoint, RESOLVE, method="HEAD", token=WRITER)
    location = answer.headers["Location"]
    assert answer.status == 302
    assert answer.headers["X-Repo-Commit"] == sha
    assert answer.headers["X-Linked-Size"] == str(len(CONTENT))
    assert answer.headers["X-Linked-Etag"] == f'"{DIGEST}"'
    assert urlsplit(location).hostname == "localhost"
    assert urlsplit(hub.endpoint).hostname == "127.0.0.1"
    assert ask(location).body == CONTENT
    assert ask(location, token=WRITER).status == 400


def test_signed_urls_expire(hub: HubServer) -> None:
    location = signed(hub)
    hub.expire()
    assert ask(location).status == 403
    assert ask(ask(hub.endpoint, RESOLVE).headers["Location"]).status == 200


def test_a_signature_is_of_one_file(hub: HubServer) -> None:
    assert ask(signed(hub).replace(DIGEST, "0" * 64)).status == 403


@pytest.mark.parametrize(
    ("asked", "status", "got"),
    [
        ("bytes=0-0", 206, range(0, 1)),
        ("bytes=10-19", 206, range(10, 20)),
        ("bytes=4000-", 206, range(4000, 4096)),
        ("bytes=4000-9999", 206, range(4000, 4096)),
        ("bytes=-96", 206, range(4000, 4096)),
        ("bytes=-9999", 206, range(4096)),
        ("bytes=4096-", 416, None),
        ("bytes=4096-5000", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=9-5", 200, range(4096)),
        ("bytes=-", 200, range(4096)),
        ("bytes=1-2,5-6", 200, range(4096)),
        ("", 200, range(4096)),
    ],
)
def test_ranges(hub: HubServer, asked: str, status: int, got: range | None) -> None:
    answer = ask(signed(hub), Range=asked)
    assert answer.status == status
    told = {206: got and f"bytes {got.start}-{got.stop - 1}/4096", 416: "bytes */4096", 200: None}[status]
    assert answer.headers["Content-Range"] == told
    assert answer.body == (CONTENT[got.start : got.stop] if got else b"")


def upload_url(hub: HubServer, content: bytes) -> str | None:
    """Where to send a content; None if the server has it."""
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]
    body = {"operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
    url = "/alice/model.git/info/lfs/objects/batch"
    answer = json.loads(ask(hub.endpoint, url, method="POST", token=WRITER, body=body).body)
    actions = answer["objects"][0].get("actions")
    return str(actions["upload"]["href"]) if actions else None


def test_only_unknown_contents_are_uploaded(hub: HubServer) -> None:
    hub.repo("alice/model", MODEL)
    assert upload_url(hub, CONTENT) is None
    content = os.urandom(1000)
    url = upload_url(hub, content)
    assert url is not None
    assert ask(url, method="PUT", body=content, token=WRITER).status == 400
    assert ask(url, method="PUT", body=content[:-1] + b"x").status == 400
    assert upload_url(hub, content) is not None
    assert ask(url, method="PUT", body=content).status == 200
    assert upload_url(hub, content) is None
    assert [entry.received for entry in hub.log("PUT")] == [0, 1000, 1000]


def test_an_upload_that_breaks_off_leaves_nothing(hub: HubServer) -> None:
    hub.repo("alice/model", MODEL)
    content = os.urandom(10_000)
    parts = urlsplit(upload_url(hub, content) or "")
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        target = f"{parts.path}?{parts.query}"
        connection.sendall(f"PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n".encode())
        connection.sendall(content[:5000])
    assert upload_url(hub, content) is not None
    assert hub.log("PUT")[0].status == 0


# control


def test_repositories_without_an_upload(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    with (tmp_path / "model" / "large.safetensors").open("wb") as file:
        file.truncate(11 * 2**20)
    (tmp_path / "model" / "sub" / "a.txt").write_text("a")
    first = hub.repo("alice/model", tmp_path / "model", tags=["v1"], branches=["exp"])
    second = hub.commit("alice/model", {"b.txt": "b"}, title="Add b")
    stored = hub.stored("alice/model")
    assert stored.sha == second
    assert stored.titles == ["Add b", "upload", "initial commit"]
    assert stored.refs == {"refs/heads/main": second, "refs/tags/v1": first, "refs/heads/exp": first}
    assert stored.files["b.txt"].read_text() == "b"
    assert stored.files["sub/a.txt"].read_text() == "a"
    assert stored.files["large.safetensors"].samefile(tmp_path / "model" / "large.safetensors")
    assert "b.txt" not in hub.stored("alice/model", "v1").files

    hub.repo("alice/model", {"c.txt": "c"})
    assert set(hub.stored("alice/model").files) == {".gitattributes", "c.txt"}
    hub.delete("alice/model")
    assert ask(hub.endpoint, "/api/models/alice/model", token=WRITER).status == 404


def test_log(hub: HubServer) -> None:
    location = signed(hub)
    ask(location, Range="bytes=0-99")
    ask(hub.endpoint, "/alice/model/resolve/main/config.json", token=WRITER)
    cdn, config = hub.log("^GET (?!.*model.safetensors)")
    assert (cdn.status, cdn.sent, cdn.range, cdn.token) == (206, 100, "bytes=0-99", False)
    assert cdn.host == urlsplit(location).netloc
    assert cdn.query == urlsplit(location).query
    assert (config.status, config.sent, config.range, config.token) == (200, 2, None, True)
    hub.reset()
    assert hub.log() == []


def test_latency(hub: HubServer) -> None:
    hub.repo("alice/model", MODEL)
    hub.latency(0.2)
    began = time.monotonic()
    ask(hub.endpoint, RESOLVE)
    assert time.monotonic() - began >= 0.2


def test_a_killed_server_starts_again_on_its_port(start_hub: StartHub) -> None:
    killed = start_hub()
    killed.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(killed.endpoint, "/api/whoami-v2")
    hub = start_hub(port=urlsplit(killed.endpoint).port)
    assert hub.endpoint == killed.endpoint
    assert ask(hub.endpoint, "/api/whoami-v2", token=WRITER).status == 200


# faults


def test_status(hub: HubServer) -> None:
    location = signed(hub)
    hub.fault("^GET /cdn/", times=2, skip=1, status=429, headers={"Retry-After": "7"}, body="slowly")
    answers = [ask(location) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 429, 429, 200]
    assert (answers[1].headers["Retry-After"], answers[1].body) == ("7", b"slowly")
    assert [entry.spoiled for entry in hub.log("/cdn/")] == [False, True, True, False]


def test_faults_take_turns(hub: HubServer) -> None:
    location = signed(hub)
    hub.fault("/cdn/", status=500)
    hub.fault("/cdn/", status=503)
    assert [ask(location).status for _ in range(3)] == [500, 503, 200]


@pytest.mark.parametrize("late", [True, False])
def test_late_status(hub: HubServer, late: bool) -> None:
    hub.delete("alice/late")
    hub.fault("repos/create", status=500, late=late)
    assert ask(hub.endpoint, "/api/repos/create", method="POST", token=WRITER, body={"name": "late"}).status == 500
    assert (ask(hub.endpoint, "/api/models/alice/late").status == 200) == late


def test_sleep(hub: HubServer) -> None:
    location = signed(hub)
    hub.fault("/cdn/", sleep=0.2)
    began = time.monotonic()
    assert ask(location).body == CONTENT
    assert time.monotonic() - began >= 0.2


def test_hold(hub: HubServer) -> None:
    location = signed(hub)
    hub.fault("/cdn/", hold=True)
    with ThreadPoolExecutor() as pool:
        held = pool.submit(ask, location)
        while not hub.log("/cdn/"):
            time.sleep(0.01)
        assert ask(location).body == CONTENT  # the next one is not
        assert not held.done()
        hub.release()
        assert held.result(60).body == CONTENT


@pytest.mark.parametrize("after", [0, 1000])
def test_drop(hub: HubServer, after: int) -> None:
    location = signed(hub)
    hub.fault("/cdn/", drop_after=after)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(location)
    assert caught.value.partial == CONTENT[:after]
    assert hub.log("/cdn/")[0].sent == after
    assert ask(location).body == CONTENT


def test_drop_after_the_last_byte_is_none(hub: HubServer) -> None:
    location = signed(hub)
    hub.fault("/cdn/", drop_after=len(CONTENT))
    assert ask(location).body == CONTENT


def test_stall(hub: HubServer) -> None:
    location = signed(hub)
    parts = urlsplit(location)
    hub.fault("/cdn/", stall_after=1000, stall=100)
    with contextlib.closing(http.client.HTTPConnection("localhost", parts.port, timeout=60)) as connection:
        connection.request("GET", f"{parts.path}?{parts.query}")
        assert connection.getresponse().read(1000) == CONTENT[:1000]
        assert [entry.sent for entry in hub.log("/cdn/")] == [1000]
    hub.fault("/cdn/", stall_after=1000, stall=0.2)
    began = time.monotonic()
    assert ask(location).body == CONTENT
    assert time.monotonic() - began >= 0.2


def test_corrupt(hub: HubServer) -> None:
    location = signed(hub)
    hub.fault("/cdn/", corrupt=3)
    wrong = ask(location, Range="bytes=100-199").body
    assert [i for i in range(100) if wrong[i] != CONTENT[100 + i]] == [3]


@pytest.mark.parametrize(
    ("how", "status", "got"),
    [("whole", 200, range(4096)), ("shifted", 206, range(11, 21)), ("short", 206, range(10, 15))],
)
def test_wrong_range(hub: HubServer, how: str, status: int, got: range) -> None:
    location = signed(hub)
    hub.fault("/cdn/", wrong_range=how)  # type: ignore[arg-type]
    answer = ask(location, Range="bytes=10-19")
    assert answer.status == status
    assert answer.headers["Content-Range"] == (f"bytes {got.start}-{got.stop - 1}/4096" if status == 206 else None)
    assert answer.body == CONTENT[got.start : got.stop]
    assert hub.log("/cdn/")[0].range == "bytes=10-19"


def test_mistakes_in_tests_are_told(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="wrong_range is one of"):
        hub.fault("", wrong_range="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nobody/nothing"):
        hub.stored("nobody/nothing")
