"""On a bad network a merge gives what it always gives, or ends with one message and leaves nothing behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from harness import HubServer, StartHub
from options import UNSYNCED

from speechft_merge import merging

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


def random_fault(chance: random.Random) -> dict[str, Any]:
    """One of all kinds, at any request."""
    kind = chance.choice(["status", "status", "drop", "stall", "sleep", "range", "late"])
    fault: dict[str, Any] = {
        "match": chance.choice([CDN, CDN, CDN, "resolve/", "GET /api/models/", "."]),
        "skip": chance.randrange(12),
        "times": chance.choice([1, 1, 2, 3]),
    }
    match kind:
        case "status":
            fault["status"] = chance.choice([200, 204, 302, 400, 401, 403, 404, 408, 410, 416, 429, 500, 502, 503, 504])
            fault["headers"] = {"Retry-After": "0"} if fault["status"] in (429, 503) else {}
        case "drop":
            fault["drop_after"] = chance.choice([0, 1, 7, 100, 1000, 50_000, MIB])
        case "stall":
            fault |= {"stall_after": chance.choice([0, 1, 1000, 100_000]), "stall": chance.choice([0.2, 2])}
        case "sleep":
            fault["sleep"] = chance.choice([0.1, 0.5, 2])
        case "range":
            fault["wrong_range"] = chance.choice(["whole", "shifted", "short"])
        case "late":
            fault |= {"late": True, "status": 500}
    return fault


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_whatever_goes_wrong(seed: int, put: HubServer, spawn: Run, tmp_path: Path, expected: bytes) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 5)):
        put.fault(**random_fault(chance))
    ran = spawn(*MERGE, env=put.env(**QUICK))
    if ran.code:
        assert_clean(ran, tmp_path, 1, 65, 66, 75)
    else:
        assert_same(ran, tmp_path, expected)
