"""The toolkits, imported when the first test needs them, and what the tests of each have in common."""

from __future__ import annotations

import functools
import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any

import torch
from options import UNSYNCED

from speechft_merge import Recipe, merge

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def toolkit(name: str) -> Any:
    """A module of a toolkit, silent."""
    _stand_in_for_numba()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


def _stand_in_for_numba() -> None:
    """openai-whisper compiles its alignment of words to time while it is imported; no test aligns words."""
    if "numba" not in sys.modules and find_spec("numba") is None:
        sys.modules["numba"] = module = module_from_spec(ModuleSpec("numba", None))
        module.jit = lambda **_: lambda function: function  # type: ignore[attr-defined]


def merged(base: object, finetuned: object, folder: Path, **recipe: Any) -> Path:
    """The one file of weights that a merge writes for a toolkit."""
    merge(str(base), str(finetuned), folder, Recipe(**recipe), options=UNSYNCED)
    (file,) = (path for path in folder.iterdir() if path.suffix not in (".json", ".md"))
    return file


def waves() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 4000)
