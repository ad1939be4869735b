"""The model card: what it tells, and what it does not."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from huggingface_hub import ModelCard

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


def test_the_card_shows_how_to_load_the_model_and_that_is_what_loads_it(run: Run, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "examples/pair"
    assert run(shipped / "base", shipped / "finetuned", "-o", "out").code == 0
    text = (tmp_path / "out/README.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this", str(tmp_path / "out")), found)
    assert type(found["model"]).__name__ == "HubertModel"


def test_a_pickled_file_is_loaded_as_its_lab_does(tmp_path: Path, run: Run) -> None:
    torch = pytest.importorskip("torch")
    for name, value in (("base", 1.0), ("tuned", 2.0)):
        weights = {f"encoder.layers.{n}.fc1.weight": torch.full((2, 2), value) for n in range(2)}
        torch.save({"model": weights, "cfg": {"model": {"_name": "hubert"}, "task": {}}}, tmp_path / f"{name}.pt")
    ran = run("base.pt", "tuned.pt", "-o", "out", "--allow-unrelated", "--allow-partial")
    assert ran.code == 0, ran.err
    assert "load_model_ensemble_and_task(['merged_model.pt'])" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("cards", "licence", "base"),
    [
        (("license: mit", "license: mit\nbase_model: org/base"), "mit", ["org/base"]),
        (("license: mit", "license: mit\nbase_model:\n- org/base"), "mit", ["org/base"]),
        (("license: mit", "license: apache-2.0"), None, None),
        (("license: mit", None), None, None),
        ((None, None), None, None),
        (("license: [mit]\nbase_model: <script>", "license: 'a: b'\nbase_model: a/b: c"), None, None),
    ],
)
def test_licence_and_base_are_those_that_the_models_state_and_else_a_hint(
    cards: tuple[str | None, str | None], licence: str | None, base: list[str] | None,
    pair: Pair, run: Run, tmp_path: Path,
) -> None:  # fmt: skip
    models = [shutil.copytree(model, tmp_path / f"in{number}") for number, model in enumerate(pair.args)]
    for model, front in zip(models, cards, strict=True):
        if front is not None:
            (model / "README.md").write_text(f"---\n{front}\n---\n\n# Model\n")
    assert run(*models, "-o", "out").code == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == licence
    assert card.data.base_model == base
    text = (tmp_path / "out/README.md").read_text()
    assert ("\n# license: one that the licences of all models allow\n" in text) == (licence is None)
    assert ("\n# base_model: " in text) == (base is None)


def test_a_card_that_is_a_pipe_is_not_waited_for(copied: list[str], spawn: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / copied[0] / "README.md")
    assert spawn(*copied, "-o", "out").code == 0


def test_what_is_left_out_is_said_with_its_reason(pair: Pair, run: Run, tmp_path: Path) -> None:
    run(*pair.args, "-o", "out")
    (told,) = re.findall(r"\d+ of the inputs are left out \((.*?)\)", (tmp_path / "out/README.md").read_text())
    assert "the fine-tune's head" in told


def test_backticks_cannot_end_the_code_that_a_name_is_shown_as() -> None:
    assert as_code("a`b\n<i>") == "`a'b\\n<i>`"
    assert as_markdown("a*b[c](d)<e>&`f`|\u202e") == "a\\*b\\[c\\](d)&lt;e&gt;&amp;\\`f\\`\\|\\\\u202e"
