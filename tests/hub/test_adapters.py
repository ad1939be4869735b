"""An adapter on the Hub: the base crosses the network once, and the adapter's own few bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lora_pairs import factors, save_adapter, settings
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import Run
    from harness import HubServer


BASE = Path("examples/pair/base").resolve()


RANK = 64  # so that its file is not all in the first read


@pytest.mark.parametrize("alpha", [0.25, 1])
def test_an_adapter_takes_the_base_and_its_own_few_bytes(
    alpha: float, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapter", factors(load_file(BASE / "model.safetensors"), RANK)[0], RANK)
    hub.repo("alice/base", BASE)
    hub.repo("alice/lora", tmp_path / "adapter")
    hub.reset()
    ran = spawn("alice/base", "alice/lora", "--alpha", alpha, "-o", "out", env=hub.env())
    assert ran.code == 0, ran.err
    assert spawn(BASE, "adapter", "--alpha", alpha, "-o", "local").code == 0
    made = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "local")]
    assert made[0] == made[1]
    files = (BASE / "model.safetensors", tmp_path / "adapter/adapter_model.safetensors")
    needed = sum(file.stat().st_size for file in files)
    assert sum(entry.sent for entry in hub.log()) < 1.2 * needed
    assert len(hub.log()) < 24  # as many as the adapter has tensors


def test_another_scale_on_the_hub_is_another_merge(hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    """The weights' checksum is the same, and no tensor tells."""
    save_adapter(tmp_path / "adapter", factors(load_file(BASE / "model.safetensors"))[0])
    hub.repo("alice/lora", tmp_path / "adapter")
    assert spawn(BASE, "alice/lora", "-o", "out", env=hub.env()).code == 0
    hub.commit("alice/lora", {"adapter_config.json": settings(scale=3).encode()})
    assert spawn(BASE, "alice/lora", "-o", "out", env=hub.env()).code == 73
