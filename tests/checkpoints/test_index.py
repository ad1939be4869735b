"""What an opened checkpoint knows of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import checkpoint_of

from speechft_merge import merge
from speechft_merge.layouts.naming import Naming

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair


@pytest.fixture
def namings(monkeypatch: pytest.MonkeyPatch) -> list[Naming]:
    """Every naming that is made from now on, whoever makes it."""
    made: list[Naming] = []
    original = Naming.__init__

    def counted(self: Naming, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Naming, "__init__", counted)
    return made


def test_the_naming_of_a_checkpoint_is_read_once(namings: list[Naming]) -> None:
    checkpoint = checkpoint_of({"encoder.layers.0.fc.weight": torch.ones(2, 2)})
    assert not namings
    assert checkpoint.naming is checkpoint.naming
    assert checkpoint.naming.under() is checkpoint.naming.under("")
    assert checkpoint.naming.stacks == {"encoder": [0]}
    assert len(namings) == 1


def test_a_merge_names_each_model_and_the_output_once(pair: Pair, namings: list[Naming], tmp_path: Path) -> None:
    merge(str(pair.base), str(pair.finetuned), tmp_path / "merged")
    assert len(namings) == 3
