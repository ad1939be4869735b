"""The pages that the tool draws, in a browser: Chromium, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from speechft_merge.similarity.drawing import Drawing

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>
const box = document.querySelector("svg").getBoundingClientRect(), root = document.documentElement;
const texts = [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
document.body.innerHTML = "<pre>" + JSON.stringify({
  wide: root.scrollWidth, window: root.clientWidth, svg: box.width,
  least: Math.min(...texts.map(text => Math.min(text.width, text.height))),
  outside: texts.filter(text => text.right > box.right + 1 || text.left < box.left - 1).length,
  dark: getComputedStyle(document.documentElement).colorScheme,
}) + "</pre>";
</script>"""


def fill(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0.5, 1], label="base vs fine-tuned")
    axes.set_ylabel("CKA")
    figure.legend(loc="outside upper center")


def a_page(width: float) -> str:
    table = [["layer", *(f"base vs fine-tuned {n}" for n in range(6))], ["0", *["0.812 ±0.034"] * 6]]
    models = {"base": "b" * 300, "finetuned": "fine"}
    drawing = Drawing("CKA by layer", "It rises.", "word " * 40, (width, 3), fill, models, table, ["Said."], ["Noted."])
    return drawing.render(".html").decode()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("window", [500, 1200])
@pytest.mark.parametrize("width", [3.5, 7.0])
def test_a_page_fits_the_window_of_a_browser_and_its_figure_is_legible(
    width: float, window: int, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    page = tmp_path / "page.html"
    page.write_text(a_page(width).replace("</main>", "</main>" + MEASURE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    ran = subprocess.run(
        [CHROMIUM, *options, f"--window-size={window},1000", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search("<pre>(.*?)</pre>", ran.stdout)
    assert found is not None
    measured = json.loads(unescape(found[1]))
    assert measured["wide"] == measured["window"] <= window, "only the figure and the table scroll"
    assert measured["outside"] == 0
    assert measured["least"] >= 8, "pixels"
    assert measured["svg"] >= 90 * width
    assert measured["dark"] == "light dark"


def test_the_figure_of_a_page_is_the_file_that_is_drawn_beside_it() -> None:
    drawing = Drawing("t", "d", "c", (3.5, 3), fill, {}, [["a"], ["b"]], [], [])
    page, svg = drawing.render(".html").decode(), drawing.render(".svg").decode()
    start = svg.index("<svg ") + len("<svg ")
    assert svg[start:].strip() in page
