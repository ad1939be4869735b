"""The table of what goes in is true: each row is tried with a real input of its kind."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from kinds_of_input import KINDS
from models import transformers
from pages import ROOT, page_name
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from conftest import Run, Weights

README, GUIDE = ROOT / "README.md", ROOT / "examples/guides/exit-codes.md"
CLAIM = (
    "Exit 0 without a `note:` or `warning:` on stderr means: every backbone weight of the output was mixed as asked "
    "(or is equal on both sides, or has alpha 0 by a rule), and the output can be loaded by what it says it is."
)


class Row(NamedTuple):
    """A row of the table; `becomes` names what is said on stderr."""

    kind: str
    becomes: str
    code: int

    @property
    def levels(self) -> set[str]:
        return set(re.findall(r"`(note|warning):`", self.becomes))


def read_table() -> list[Row]:
    section = GUIDE.read_text().partition("| kind of input | what happens | exit code |\n")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines()[1:]]
    return [Row(kind, becomes, int(code)) for kind, becomes, code in cells]


TABLE = read_table()


@pytest.mark.parametrize("page", [README, GUIDE], ids=page_name)
def test_the_claim_stands_on_the_page_word_for_word(page: Path) -> None:
    assert CLAIM in " ".join(page.read_text().replace("\n> ", " ").split())


def test_every_row_has_an_input_and_every_input_a_row() -> None:
    assert len(TABLE) > 30
    assert [row.kind for row in TABLE if row.kind not in KINDS] == []
    assert sorted(KINDS) == sorted(row.kind for row in TABLE)


@pytest.mark.parametrize("row", [row for row in TABLE if row.kind in KINDS], ids=lambda row: row.kind.replace(" ", "_"))
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_the_table_says_happens(row: Row, spawn: Run, tmp_path: Path) -> None:
    with ExitStack() as stack:
        call = KINDS[row.kind](tmp_path, stack)
        ran = spawn(*call.words, env=call.env)
    assert ran.code == row.code, ran.err
    if row.code not in (0, 69):
        assert ran.out == ""
        assert "error: " in ran.err
        assert not (tmp_path / "out").exists()
        return
    assert (tmp_path / "out").is_dir()
    assert set(re.findall(r"^speechft-merge: (note|warning):", ran.err, re.MULTILINE)) == row.levels
    if row.code == 0 and not row.levels:
        assert ran.said == []
        assert call.expected
    assert_mixed_and_loads(tmp_path / "out", call.expected)


def assert_mixed_and_loads(out: Path, expected: Any) -> None:
    """Every tensor is that of an independent merge in float64, and the class that config.json names takes all."""
    if (out / "config.json").exists():
        weights: Any = folded(load_file(out / "model.safetensors"))
        (name,) = transformers().AutoConfig.from_pretrained(out).architectures
        _, info = getattr(transformers(), name).from_pretrained(out, output_loading_info=True)
        assert {key: value for key, value in info.items() if value} == {}
    elif (out / "model.safetensors").exists():
        weights = load_file(out / "model.safetensors")
    else:
        (file,) = out.glob("*.pt")
        weights = {name: tensor.numpy() for name, tensor in torch.load(file)["model_state_dict"].items()}
    for name, values in expected.items():
        np.testing.assert_allclose(weights[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def folded(weights: Weights) -> Weights:
    """The weights, with those that weight norm keeps in two parts also as one."""
    parts = "parametrizations.weight.original"
    whole = {}
    for name in weights:
        if name.endswith(f"{parts}0"):
            stem = name.removesuffix(f"{parts}0")
            magnitude, direction = (torch.from_numpy(weights[f"{stem}{parts}{part}"]) for part in "01")
            whole[f"{stem}weight"] = torch._weight_norm(direction, magnitude, 2).numpy()
    return weights | whole
