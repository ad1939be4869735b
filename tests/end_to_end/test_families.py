"""A sweep: every family of transformers with a speech encoder, by its bare class and its published one, by every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from families import FAMILIES, Family, build, fine_tune, interpolated, run
from options import UNSYNCED

from speechft_merge import Recipe, merge

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = [(family, base, task) for family in FAMILIES for base in family.bases for task in family.classes]


@dataclass(frozen=True)
class Saved:
    """A model, and the folder to which transformers wrote it."""

    model: Any
    path: Path


class Families:
    """Models built and saved once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved: dict[tuple[str, ...], Saved] = {}

    def base(self, family: Family, name: str) -> Saved:
        if (family.bare, name) not in self._saved:
            self._saved[family.bare, name] = self._save(build(family, name))
        return self._saved[family.bare, name]

    def fine_tuned(self, family: Family, base: str, name: str) -> Saved:
        key = family.bare, base, name
        if key not in self._saved:
            self._saved[key] = self._save(fine_tune(self.base(family, base).model, family, name))
        return self._saved[key]

    def _save(self, model: Any) -> Saved:
        path = self.folder / str(len(self._saved))
        model.save_pretrained(path)
        return Saved(model, path)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    return Families(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("keep_head", [False, True], ids=["base class", "keep head"])
@pytest.mark.parametrize(("family", "base", "task"), [pytest.param(*pair, id="-".join(pair[1:])) for pair in PAIRS])
def test_a_merge_is_the_model_that_float64_makes(
    family: Family, base: str, task: str, keep_head: bool, families: Families, tmp_path: Path
) -> None:
    """Loaded with nothing to remark, every tensor as it should be, and with it all that the model computes."""
    first, second = families.base(family, base), families.fine_tuned(family, base, task)
    result = merge(str(first.path), str(second.path), tmp_path / "out", Recipe(keep_head=keep_head), options=UNSYNCED)
    assert [finding.text for finding in result.findings if "lacks" not in finding.text] == []
    owner = (second if keep_head else first).model
    model, told = type(owner).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in told.items() if value} == {}

    wanted = interpolated(family, first.model, second.model, keep_head)
    assert differences(model.state_dict(), wanted) == {}
    by_hand = build(family, type(owner).__name__, **(family.heads if keep_head else {}))
    by_hand.load_state_dict({name: tensor.float() for name, tensor in wanted.items()})
    torch.testing.assert_close(run(family, model.eval()), run(family, by_hand), rtol=1e-4, atol=1e-5)


def differences(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Name -> by how many steps of float32 the worst element is off, of tensors that are off by more than rounding."""
    assert found.keys() == wanted.keys()
    off = {}
    for name, exact in wanted.items():
        step = max(float(exact.abs().max()) * 2**-23, 2**-126) if found[name].is_floating_point() else 1
        distance = float((found[name].double() - exact).abs().max()) / step
        if distance > 1 or found[name].shape != exact.shape:
            off[name] = distance
    return off
