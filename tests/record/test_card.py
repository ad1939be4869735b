"""The model card: what it tells, and what it does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from speechft_merge.foreign import as_code, as_markdown

if TYPE_CHECKING:
    from conftest import Pair, Run, Tiny


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    empty, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), text


def test_the_card_has_front_matter_the_recipe_and_a_row_a_layer(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out", "--alpha", 0.3, "--layer-alpha", "0=0.1")
    front, text = card_of(tmp_path / "out")
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["merge", "speech-ft", "speech"],
    }
    assert "alpha = 0.3" in text
    assert "`0=0.1`" in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert rows.keys() == {"layer", "cnn", "projection", "pos_conv", "0", "1", "final_norm", "other"}
    assert "| 0.1 |" in rows["0"]
    assert "@article" in text


@pytest.mark.parametrize("option", ["-o {}", "--output {}", "--output={}", "-o{}", "-qo {}", "-o out --recipe={}.yaml"])
def test_no_path_of_this_machine_stands_in_the_card(option: str, pair: Pair, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.yaml").write_text("alpha: 0.5")
    assert run(*pair.args, *option.format(tmp_path / "out").split()).code == 0
    text = (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in text
    assert str(pair.base.parent) not in text
    assert "`base`" in text


def test_what_a_folder_is_called_is_no_markup_of_the_card(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    name = "x`\n# Heading <script>alert(1)</script> [link](http://evil) \x1b[31m\u202e|"
    name = name.replace("/", "")
    base = tiny.weights()
    (tmp_path / "in").mkdir()
    tiny.write(tmp_path / "in" / name, base)
    tuned = tiny.write(tmp_path / "tuned", tiny.finetuned(base))
    assert run(tmp_path / "in" / name, tuned, "-o", "out").code == 0
    text = (tmp_path / "out/README.md").read_text()
    assert not any(letter in text for letter in ("\x1b", "\u202e", "\n# Heading"))
    outside = re.sub("`[^`\n]*`", "", re.sub("```.*?```", "", text, flags=re.DOTALL))
    assert "<script>" not in outside
    assert "](http" not in outside.replace("\\](", "")


def test_backticks_cannot_end_the_code_that_a_name_is_shown_as() -> None:
    assert as_code("a`b\n<i>") == "`a'b\\n<i>`"
    assert as_markdown("a*b[c](d)<e>&`f`|\u202e") == "a\\*b\\[c\\](d)&lt;e&gt;&amp;\\`f\\`\\|\\\\u202e"
