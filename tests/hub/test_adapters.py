"""An adapter on the Hub: the base crosses the network once, and the adapter's own few bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_pairs import factors, save_adapter
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import Run
    from harness import HubServer


BASE = Path("examples/pair/base").resolve()


def test_an_adapter_takes_the_base_and_its_own_few_bytes(hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", factors(load_file(BASE / "model.safetensors"))[0])
    hub.repo("alice/base", BASE)
    hub.repo("alice/lora", tmp_path / "adapter")
    hub.reset()
    ran = spawn("alice/base", "alice/lora", "-o", "out", env=hub.env())
    assert ran.code == 0, ran.err
    assert spawn(BASE, "adapter", "-o", "local").code == 0
    made = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "local")]
    assert made[0] == made[1]
    needed = (BASE / "model.safetensors").stat().st_size
    assert sum(entry.sent for entry in hub.log()) < 1.2 * needed
