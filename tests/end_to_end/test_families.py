"""A sweep: the families of transformers with a speech encoder, from the bare and the published class to each task."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from families import FAMILIES, Family, alone, build, fine_tune, interpolated, looks_swapped, run
from float64 import differences, rounded
from options import UNSYNCED

from speechft_merge import Recipe, merge
from speechft_merge.errors import MismatchError
from speechft_merge.plan.findings import Level

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
    folders, recipe = (str(first.path), str(second.path)), Recipe(keep_head=keep_head)
    swapped = looks_swapped(family, first.model, second.model)
    if swapped:
        with pytest.raises(MismatchError, match="swapped"):
            merge(*folders, tmp_path / "out", recipe, options=UNSYNCED)
    result = merge(*folders, tmp_path / "out", recipe, options=replace(UNSYNCED, allow_unrelated=swapped))
    owner, other = (second, first) if keep_head else (first, second)
    notes = {Level.NOTE} if alone(family, owner.model, other.model) else set()
    assert {finding.level for finding in result.findings} == notes | ({Level.WARNING} if swapped else set())
    assert config(tmp_path / "out") == config(owner.path)
    model, told = type(owner.model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in told.items() if value} == {}

    wanted = interpolated(family, first.model, second.model, keep_head)
    assert differences(model.state_dict(), wanted) == {}
    by_hand = copy.deepcopy(owner.model)
    by_hand.load_state_dict(rounded(wanted, owner.model.state_dict()))
    torch.testing.assert_close(run(family, model.eval()), run(family, by_hand), rtol=1e-4, atol=1e-5)


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())
