"""CITATION.cff says of version and paper what the package says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from speechft_merge.record.card import CITATION
from speechft_merge.version import __version__

CFF: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text())


def test_the_version_is_the_packages() -> None:
    assert CFF["version"] == __version__


def test_the_authors_are_the_model_cards() -> None:
    names = [f"{author['family-names']}, {author['given-names']}" for author in CFF["preferred-citation"]["authors"]]
    assert f"author  = {{{' and '.join(names)}}}" in CITATION


@pytest.mark.parametrize("field", ["title", "journal", "volume", "year", "doi"])
def test_the_paper_is_the_model_cards(field: str) -> None:
    assert f"{field:<7} = {{{CFF['preferred-citation'][field]}}}" in CITATION
