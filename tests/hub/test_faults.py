"""On a bad network a merge gives what it always gives, or ends with one message and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from harness import HubServer, StartHub
from options import UNSYNCED

from speechft_merge import merging
from speechft_merge.errors import TemporaryError
from speechft_merge.sources.download import Download

if TYPE_CHECKING:
    from conftest import Pair, Ran, Run, Start, Tiny

SINGLE = "model.safetensors"
MERGE = ("alice/base", "alice/ft", "-o", "out")
QUICK = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
CDN = "GET /cdn/"
MIB = 1 << 20


@pytest.fixture(scope="module")
def streamed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Files of 5 MB: large enough to be fetched by ranges."""
    base = tiny.weights(hidden=192, layers=3)
    return tiny.write_pair(tmp_path_factory.mktemp("streamed"), base, tiny.ctc(tiny.finetuned(base)))


@pytest.fixture(scope="module")
def expected(streamed: Pair, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("expected") / "out"
    merging.merge(str(streamed.base), str(streamed.finetuned), output, options=UNSYNCED)
    return (output / SINGLE).read_bytes()


@pytest.fixture
def put(hub: HubServer, streamed: Pair) -> HubServer:
    hub.repo("alice/base", streamed.base)
    hub.repo("alice/ft", streamed.finetuned)
    return hub


def assert_same(ran: Ran, folder: Path, expected: bytes) -> None:
    assert ran.code == 0, ran.err
    assert (folder / "out" / SINGLE).read_bytes() == expected


def assert_clean(ran: Ran, folder: Path, *codes: int) -> None:
    """One message, and nothing left."""
    assert ran.code in codes, (ran.code, ran.err)
    assert "Traceback" not in ran.err
    *_, error, last = [line for line in ("", *ran.err.splitlines()) if not line.startswith("  found: ")]
    assert (error if last.startswith("hint: ") else last).startswith("speechft-merge: error: ")
    assert left(folder) == []


def left(folder: Path) -> list[str]:
    """What lies where the output and its temporary folders would."""
    return sorted(path.name for path in folder.iterdir() if "out" in path.name or "partial" in path.name)


@pytest.mark.parametrize("skip", [pytest.param(0, id="index"), pytest.param(4, id="weights")])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 2},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"status": 403},
        {"drop_after": 0},
        {"drop_after": 50_000, "times": 2},
        {"stall_after": 1000, "stall": 3},
        {"sleep": 3},
    ],
    ids=lambda fault: "-".join(f"{name}={value}" for name, value in fault.items() if name != "headers"),
)
def test_what_passes_is_waited_out(
    fault: dict[str, Any], skip: int, put: HubServer, spawn: Run, tmp_path: Path, expected: bytes
) -> None:
    put.fault(CDN, skip=skip, **fault)
    assert_same(spawn(*MERGE, env=put.env(**QUICK)), tmp_path, expected)
    assert sum(entry.spoiled for entry in put.log()) == fault.get("times", 1)


@pytest.mark.parametrize("match", ["HEAD .*/resolve/", "GET .*/resolve/"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429, "headers": {"Retry-After": "0"}}, {"sleep": 3}])
def test_resolving_is_tried_again(
    fault: dict[str, Any], match: str, put: HubServer, spawn: Run, tmp_path: Path, expected: bytes
) -> None:
    put.fault(match, **fault)
    assert_same(spawn(*MERGE, env=put.env(**QUICK)), tmp_path, expected)
    assert any(entry.spoiled for entry in put.log())


@pytest.mark.parametrize(
    "fault", [{"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500}, {"drop_after": 0}, {"sleep": 3}]
)
def test_a_listing_is_asked_for_again(
    fault: dict[str, Any], put: HubServer, spawn: Run, tmp_path: Path, expected: bytes
) -> None:
    put.fault("GET /api/models/", times=2, **fault)
    assert_same(spawn(*MERGE, env=put.env(**QUICK)), tmp_path, expected)


@pytest.mark.parametrize("match", ["GET /api/models/", CDN])
def test_a_busy_hub_is_left_alone_for_as_long_as_it_asks(
    match: str, put: HubServer, spawn: Run, tmp_path: Path, expected: bytes
) -> None:
    put.fault(match, status=429, headers={"Retry-After": "2"})
    began = time.monotonic()
    assert_same(spawn(*MERGE, env=put.env(), patient=True), tmp_path, expected)
    assert time.monotonic() - began > 2


def test_a_dropped_range_goes_on_where_it_ended(put: HubServer, spawn: Run, tmp_path: Path, expected: bytes) -> None:
    put.fault(CDN, skip=4, times=1, drop_after=MIB)
    assert_same(spawn(*MERGE, env=put.env()), tmp_path, expected)
    total = sum(entry.sent for entry in put.log(CDN))
    assert total < 2 * len(expected) + 700_000


@pytest.mark.parametrize("skip", [0, 4])
@pytest.mark.parametrize("how", ["whole", "shifted", "short"])
def test_another_range_than_was_asked_for_is_refused(
    how: Literal["whole", "shifted", "short"], skip: int, put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    put.fault(CDN, skip=skip, times=100, wrong_range=how)
    ran = spawn(*MERGE, env=put.env())
    assert_clean(ran, tmp_path, 65)
    assert "requested bytes" in ran.err


def test_urls_that_expire_meanwhile_are_renewed(
    put: HubServer, tmp_path: Path, expected: bytes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    put.fault(CDN, skip=2, hold=True)
    for name, value in put.env().items():
        monkeypatch.setenv(name, value)
    process = start(*MERGE)
    wait_for(lambda: any(entry.spoiled for entry in put.log(CDN)))
    put.expire()
    put.release()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert (tmp_path / "out" / SINGLE).read_bytes() == expected
    assert any(entry.status == 403 for entry in put.log(CDN))


@pytest.mark.slow
def test_urls_that_are_never_good_end(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault(CDN, times=1000, status=403)
    assert_clean(spawn(*MERGE, env=put.env()), tmp_path, 75, 1)
    assert len(put.log()) < 200


@pytest.mark.slow
def test_a_connection_that_drops_every_time_ends(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault(CDN, times=1000, drop_after=1000)
    assert_clean(spawn(*MERGE, env=put.env()), tmp_path, 75)
    assert len(put.log()) < 400


@pytest.mark.slow
def test_a_server_that_is_silent_for_good_ends(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault(CDN, skip=4, times=1000, stall_after=0, stall=100)
    assert_clean(spawn(*MERGE, env=put.env(**QUICK)), tmp_path, 75)


def test_files_that_changed_since_they_were_listed_are_refused(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    """A mirror that mixes versions up: another size under the same commit."""
    put.fault("HEAD .*/resolve/", times=100, status=200, headers={"X-Linked-Size": "77", "X-Linked-Etag": '"x"'})
    assert_clean(spawn(*MERGE, env=put.env()), tmp_path, 1, 65, 75)


@pytest.mark.parametrize("moment", ["listing", "index", "weights"])
def test_a_server_that_dies(
    moment: str, start_hub: StartHub, streamed: Pair, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start_hub()
    hub.repo("alice/base", streamed.base)
    hub.repo("alice/ft", streamed.finetuned)
    match, skip = {"listing": ("GET /api/models/", 1), "index": (CDN, 0), "weights": (CDN, 5)}[moment]
    hub.fault(match, skip=skip, times=100, hold=True)
    for name, value in hub.env().items():
        monkeypatch.setenv(name, value)
    process = start(*MERGE)
    wait_for(lambda: any(entry.spoiled for entry in hub.log(match)))
    hub.kill()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert left(tmp_path) == []


def test_ctrl_c_in_a_silent_download_ends_at_once(
    put: HubServer, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    put.fault(CDN, skip=5, times=100, hold=True)
    for name, value in put.env(HF_HUB_DOWNLOAD_TIMEOUT="1000").items():
        monkeypatch.setenv(name, value)
    process = start(*MERGE)
    wait_for(lambda: any(entry.spoiled for entry in put.log(CDN)))
    process.terminate()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert left(tmp_path) == []


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# content that is not what it was


@pytest.mark.parametrize("at", [0, 30, 1000, 200_000, 3 * MIB])
def test_damage_on_the_way_is_found_if_it_is_asked_for(at: int, put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault("GET .*/cdn/", times=1, corrupt=at)
    ran = spawn(*MERGE, "--verify-inputs", env=put.env())
    assert_clean(ran, tmp_path, 75)
    assert "arrived damaged: its checksum is not the Hub's" in ran.err
    assert spawn(*MERGE, "--verify-inputs", env=put.env()).code == 0  # nothing damaged stays in the cache


def test_damage_in_the_cache_is_found(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    assert spawn(*MERGE, "--download", env=put.env()).code == 0
    blob = max((put.home / "hub").rglob("blobs/*"), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    ran = spawn(*MERGE[:2], "-o", "out2", "--verify-inputs", env=put.env())
    assert ran.code == 65
    assert "is damaged: its checksum is not the Hub's" in ran.err


def test_damage_in_a_small_file_is_always_found(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault(r"GET .*config\.json", times=1, corrupt=5)
    assert_clean(spawn(*MERGE, env=put.env()), tmp_path, 75)


def test_another_etag_midway_ends_the_merge(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    download = Download("a/b", "c", "0" * 40, 100, "etag")
    for etag in ('"one"', 'W/"one"', "one", None):
        download._require_unchanged(etag)
    with pytest.raises(TemporaryError, match="changed while it was read"):
        download._require_unchanged('"two"')


@pytest.mark.parametrize("encoding", ["gzip", "br", "x" * 5000])
def test_what_comes_packed_is_refused(encoding: str, put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault(CDN, skip=2, times=100, status=206, headers={"Content-Encoding": encoding}, body="x")
    ran = spawn(*MERGE, env=put.env())
    assert_clean(ran, tmp_path, 65)
    assert "Content-Encoding" in ran.err


@pytest.mark.parametrize(
    ("proxy", "code"),
    [("http://[::bad", 1), ("socks5://127.0.0.1:9", 1), ("ftp://x", 1), ("http://me:secret@127.0.0.1:9", 75)],
)
def test_a_proxy_that_cannot_be_used_is_named(
    proxy: str, code: int, put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    env = put.env(http_proxy=proxy, all_proxy=proxy, NO_PROXY="", no_proxy="")
    ran = spawn(*MERGE, env=env)
    assert_clean(ran, tmp_path, code)
    assert "prox" in ran.err
    assert "secret" not in ran.err


def test_a_password_in_the_endpoint_and_a_token_that_a_server_echoes_are_not_shown(
    put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    for host, code in (("127.0.0.1:1", 75), ("127.0.0.1:99999", 2), ("[::1", 2), ("[::1]:x", 2)):
        ran = spawn(*MERGE, env=put.env(HF_ENDPOINT=f"http://alice:hunter2@{host}"))
        assert_clean(ran, tmp_path, code)
        assert "hunter2" not in ran.err
    put.fault("GET /api/models/", times=9, status=400, body='{"error": "who is hf_alice? Bearer hf_alice"}')
    ran = spawn(*MERGE, env=put.env(SPEECHFT_MERGE_DEBUG="1"))
    assert "hf_alice" not in ran.err


def test_a_token_that_is_no_ascii_is_named(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*MERGE, env=put.env(token="hf_ä"))
    assert_clean(ran, tmp_path, 1)
    assert "not ASCII" in ran.err
