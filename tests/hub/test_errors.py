"""What cannot be read from the Hub ends with one message that says what to do, and leaves nothing behind."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import READER, STRANGER, UNKNOWN, WRITER, HubServer

if TYPE_CHECKING:
    from conftest import Pair, Ran, Run, Tiny

MERGE = ("alice/base", "alice/ft", "-o", "out")
QUICK = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}


def assert_refused(ran: Ran, code: int, *said: str, folder: Path) -> None:
    """One message, with `said` in its parts; nothing on stdout, nothing written, and no token in sight."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    # huggingface_hub tells of its retries by itself
    own = [
        line for line in ran.err.splitlines() if not line.startswith(("HTTP Error ", "Retrying in ", "Rate limited. "))
    ]
    assert own[0].startswith("speechft-merge: error: ")
    assert len(own) <= 3
    assert all(line.startswith(("  found: ", "hint: ")) for line in own[1:])
    assert sum(map(len, own)) < 700
    for text in said:
        assert any(text in line for line in own)
    assert not any(token in ran.err for token in (WRITER, READER, STRANGER, UNKNOWN, "Signature="))
    assert [path.name for path in folder.iterdir() if path.name.startswith((".", "out", "ft"))] == []


@pytest.fixture(scope="module")
def large(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Files above the size up to which they are fetched whole."""
    base = tiny.weights(hidden=192, layers=3)
    return tiny.write_pair(tmp_path_factory.mktemp("large"), base, tiny.ctc(tiny.finetuned(base)))


@pytest.fixture
def put(hub: HubServer, pair: Pair) -> HubServer:
    hub.repo("alice/base", pair.base)
    hub.repo("alice/ft", pair.finetuned)
    return hub


@pytest.mark.parametrize(
    ("reference", "code", "said"),
    [
        ("alice/nothing-here", 66, ("alice/nothing-here", "no such model", "hf auth login")),
        ("alice/base@nowhere", 66, ("alice/base@nowhere", "no such revision", "branch")),
        ("alice/base@refs/pr/9", 66, ("no such revision",)),
        ("alice/base@0123456789012345678901234567890123456789", 66, ("no such revision",)),
        ("alice/base:nothing.safetensors", 66, ("nothing.safetensors", "model.safetensors")),
        ("alice/base:config.json", 65, ("config.json", "JSON")),
        ("hf://alice/base/nothing", 66, ("nothing", "model.safetensors")),
        ("alice/a--b", 66, ("alice/a--b",)),
        ("alice/a..b", 66, ("alice/a..b",)),
    ],
)
def test_what_is_not_there(
    reference: str, code: int, said: tuple[str, ...], put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    assert_refused(spawn(reference, "alice/ft", "-o", "out", env=put.env()), code, *said, folder=tmp_path)


@pytest.mark.parametrize("token", [None, WRITER])
def test_a_model_that_is_not_there_as_the_fine_tune(
    token: str | None, put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    ran = spawn("alice/base", "alice/nothing-here", env=put.env(token))
    assert_refused(ran, 66, "alice/nothing-here", "hf auth login", folder=tmp_path)


@pytest.mark.parametrize("token", [None, STRANGER])
def test_a_private_model(token: str | None, put: HubServer, pair: Pair, spawn: Run, tmp_path: Path) -> None:
    put.repo("alice/base", pair.base, private=True)
    ran = spawn(*MERGE, env=put.env(token))
    assert_refused(ran, 66, "alice/base", "no access", "hf auth login", "HF_TOKEN", folder=tmp_path)


@pytest.mark.parametrize("token", [None, STRANGER])
@pytest.mark.parametrize("which", ["pair", "large"])
def test_a_gated_model(
    which: str, token: str | None, request: pytest.FixtureRequest, put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    put.repo("alice/base", request.getfixturevalue(which).base, gated=True)
    ran = spawn(*MERGE, env=put.env(token))
    assert_refused(ran, 66, "alice/base is gated", "accept its terms", f"{put.endpoint}/alice/base", folder=tmp_path)


def test_a_gated_model_that_is_to_be_downloaded(put: HubServer, large: Pair, spawn: Run, tmp_path: Path) -> None:
    put.repo("alice/base", large.base, gated=True)
    ran = spawn(*MERGE, "--download", env=put.env(STRANGER))
    assert_refused(ran, 66, "is gated", "accept its terms", folder=tmp_path)


def test_a_token_that_the_hub_does_not_know(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*MERGE, env=put.env(UNKNOWN))
    assert_refused(ran, 1, "rejected your token", "HF_TOKEN", "hf auth login", folder=tmp_path)


@pytest.mark.parametrize("files", [{}, {"README.md": "# nothing"}])
def test_a_repository_without_weights(files: dict[str, str], put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.repo("alice/empty", files)
    assert_refused(spawn("alice/empty", "alice/ft", env=put.env()), 66, "alice/empty", folder=tmp_path)


def test_a_file_that_is_no_checkpoint(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.repo("alice/odd", {"model.safetensors": b"<html>" * 100})
    ran = spawn("alice/odd", "alice/ft", env=put.env())
    assert_refused(ran, 65, "alice/odd", "web page", folder=tmp_path)


def test_a_shard_that_is_missing(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    index = '{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'
    put.repo("alice/part", {"model.safetensors.index.json": index})
    ran = spawn("alice/part", "alice/ft", env=put.env())
    assert_refused(ran, ran.code, "model-00001-of-00001.safetensors", folder=tmp_path)
    assert ran.code in (65, 66)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("options", [(), ("--download",)])
def test_an_endpoint_that_is_down(options: tuple[str, ...], hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{closed_port()}"
    ran = spawn(*MERGE, *options, env=hub.env(HF_ENDPOINT=nowhere))
    assert_refused(ran, 75, f"cannot reach {nowhere}", "HF_ENDPOINT", folder=tmp_path)


def test_an_endpoint_that_does_not_answer(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault("GET /api/models/", times=100, sleep=4)
    ran = spawn(*MERGE, env=put.env(**QUICK))
    assert_refused(ran, 75, f"cannot reach {put.endpoint}", folder=tmp_path)


@pytest.mark.parametrize("which", ["pair", "large"])
@pytest.mark.parametrize("match", ["GET /api/models/", "(GET|HEAD) .*/resolve/", "GET /cdn/"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_limit_that_does_not_end(
    status: int, match: str, which: str, request: pytest.FixtureRequest, put: HubServer, spawn: Run, tmp_path: Path
) -> None:
    put.repo("alice/base", request.getfixturevalue(which).base)
    put.fault(match, times=1000, status=status, headers={"Retry-After": "0"})
    ran = spawn(*MERGE, env=put.env(**QUICK))
    assert_refused(ran, 75, f"HTTP {status}", "again later", folder=tmp_path)


def test_a_server_that_fails_for_good(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    put.fault("GET /api/models/", times=1000, status=500)
    assert_refused(spawn(*MERGE, env=put.env()), 75, "HTTP 500", folder=tmp_path)


def test_an_answer_that_is_no_json(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    """A proxy's login page."""
    put.fault("GET /api/models/", times=1000, status=200, body="<html>log in</html>")
    ran = spawn(*MERGE, env=put.env())
    assert_refused(ran, ran.code, folder=tmp_path)


def test_no_token_in_what_is_written(put: HubServer, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*MERGE, "-vv", env=put.env())
    assert ran.code == 0, ran.err
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".md"))
    assert WRITER not in ran.out + ran.err + written
    assert "Signature=" not in ran.out + ran.err + written


@pytest.mark.parametrize("match", ["GET /api/models/", "HEAD .*/resolve/", "GET /cdn/"])
def test_no_token_in_a_traceback_either(match: str, put: HubServer, large: Pair, spawn: Run, tmp_path: Path) -> None:
    put.repo("alice/base", large.base)
    put.fault(match, times=1000, status=500)
    ran = spawn(*MERGE, env=put.env(SPEECHFT_MERGE_DEBUG="1"))
    assert ran.code == 75
    assert "Traceback" in ran.err
    assert WRITER not in ran.err
    assert "Signature=" not in ran.err
