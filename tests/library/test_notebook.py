"""The notebook runs from its first cell to its last, and its results are those that are stored in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import plain_environment

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/notebook.ipynb"
CELLS: list[dict[str, Any]] = [
    cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
]
RUN = """
import ast, json, sys

names = {}
for source in json.load(sys.stdin):
    *before, last = ast.parse(source).body
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(before, []), "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        print(*[] if value is None else [repr(value)])
    else:
        exec(compile(source, "cell", "exec"), names)
"""
"""What a notebook does, but for its drawing."""


@pytest.mark.slow
@pytest.mark.parametrize("folder", [ROOT, ROOT / "examples"], ids=lambda folder: folder.name)
def test_the_notebook_runs_and_shows_what_is_stored_in_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    environment = plain_environment() | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "MPLBACKEND": "agg"}
    sources = json.dumps(["".join(cell["source"]) for cell in CELLS])
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=sources, cwd=folder, env=environment, capture_output=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored = ["".join(output.get("data", {}).get("text/plain", ())) for cell in CELLS for output in cell["outputs"]]
    results = [text for text in stored if text.startswith(("<Merge", "<Report", "<Verification"))]
    assert len(results) == 3
    assert [text for text in results if text not in done.stdout] == []
