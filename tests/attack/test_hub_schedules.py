"""A hundred schedules of a Hub that fails, waits, lies or damages: the right bytes come, or none with one message."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from test_faults import CDN, MERGE, MIB, QUICK, assert_clean, assert_same, expected, put, streamed

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from harness import HubServer

__all__ = ["expected", "put", "streamed"]

SCHEDULES = 100


def random_fault(chance: random.Random) -> dict[str, Any]:
    """One of all kinds, at any request."""
    kind = chance.choice(
        ["status", "status", "drop", "stall", "sleep", "range", "late", "corrupt", "corrupt", "packed"]
    )
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
        case "corrupt":
            fault |= {"corrupt": chance.choice([0, 20, 1000, chance.randrange(5 * MIB)]), "match": "GET "}
        case "packed":
            fault |= {"status": chance.choice([200, 206]), "headers": {"Content-Encoding": "gzip"}, "body": "\x1f\x8b"}
        case "late":
            fault |= {"late": True, "status": 500}
    return fault


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_whatever_goes_wrong(seed: int, put: HubServer, spawn: Run, tmp_path: Path, expected: bytes) -> None:
    """Damage to the weights is only noticed where it is looked for: a range has no checksum of its own."""
    chance = random.Random(seed)
    faults = [random_fault(chance) for _ in range(chance.randrange(1, 5))]
    for fault in faults:
        put.fault(**fault)
    verifying = ["--verify-inputs"] if any("corrupt" in fault for fault in faults) else []
    ran = spawn(*MERGE, *verifying, env=put.env(**QUICK))
    if ran.code:
        assert_clean(ran, tmp_path, 1, 65, 66, 75)
    else:
        assert_same(ran, tmp_path, expected)
