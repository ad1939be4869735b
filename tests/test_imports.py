"""What each command imports: seconds of start-up are paid only by those that need them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair

HEAVY = {"torch", "transformers", "huggingface_hub"}
REMOTE = {"email", "http", "httpx", "socket", "ssl", "asyncio"}
PICKLED = {"pickletools"}

SPY = """
import sys
sys.argv[0] = "speechft-merge"
from speechft_merge.__main__ import main
try:
    main()
finally:
    sys.stderr.write(" ".join(m for m in sys.modules if "." not in m))
"""


def imported(args: list[str], folder: Path, environment: dict[str, str] | None = None) -> set[str]:
    """Names of the top-level modules that the command imported."""
    command = [sys.executable, "-c", SPY, *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_a_merge_imports_no_framework(pair: Pair, tmp_path: Path) -> None:
    modules = imported([*pair.args, "-o", "out"], tmp_path)
    assert (tmp_path / "out/model.safetensors").is_file()
    assert not modules & (HEAVY | REMOTE | PICKLED)
    assert "numpy" in modules


@pytest.mark.parametrize("args", [["-q"], ["--json"]])
def test_a_merge_without_tables_does_not_import_rich(args: list[str], pair: Pair, tmp_path: Path) -> None:
    assert not imported([*pair.args, "-o", "out", *args], tmp_path) & (HEAVY | {"rich", "yaml", "statistics"})


def test_a_dry_run_and_an_inspection_import_no_framework(pair: Pair, tmp_path: Path) -> None:
    assert not imported([*pair.args, "--dry-run"], tmp_path) & HEAVY
    assert not imported(["inspect", pair.args[0]], tmp_path) & (HEAVY | {"numpy"})
    assert not imported(["inspect", *pair.args, "-q"], tmp_path) & (HEAVY | {"rich"})


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["merge", "--help"], ["inspect", "--help"]])
def test_help_and_version_import_next_to_nothing(args: list[str], tmp_path: Path) -> None:
    assert not imported(args, tmp_path) & (HEAVY | {"numpy", "rich", "yaml", "safetensors", "pydantic"})


def test_the_version_alone_does_not_even_import_typer(tmp_path: Path) -> None:
    assert "typer" not in imported(["--version"], tmp_path)


@pytest.mark.parametrize("words", ["speechft-merge a b --al", "speechft-merge ins"])
def test_completion_imports_next_to_nothing(words: str, tmp_path: Path) -> None:
    environment = {
        "_SPEECHFT_MERGE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    assert not imported([], tmp_path, environment) & (HEAVY | {"numpy", "rich", "yaml"})


def test_the_library_is_imported_on_first_use() -> None:
    code = (
        "import sys, speechft_merge; print('numpy' in sys.modules); speechft_merge.merge; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_public_name_is_there() -> None:
    import speechft_merge

    assert [name for name in speechft_merge.__all__ if getattr(speechft_merge, name, None) is None] == []
    with pytest.raises(AttributeError, match="nonsense"):
        _ = speechft_merge.nonsense


def test_nothing_is_imported_from_the_folder_in_which_it_runs(pair: Pair, tmp_path: Path) -> None:
    """It may be a foreign model's, with a numpy.py of its own; `python -m` puts it first."""
    for name in ("numpy", "yaml", "typer", "json", "gc", "resource", "torch", "rich", "safetensors"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    command = [sys.executable, "-m", "speechft_merge", *pair.args, "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
