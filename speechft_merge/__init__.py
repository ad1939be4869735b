"""Interpolate a pre-trained and a fine-tuned speech encoder, tensor by tensor (Speech-FT, Lin et al., TASLP 2026).

    from speechft_merge import Recipe, merge
    result = merge("hubert-base-ls960", "hubert-asr", "merged", alpha=0.25)
    result.manifest.layers

Names are imported when they are first used: `speechft-merge --version` must not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from speechft_merge.system import require_system
from speechft_merge.version import __version__

if TYPE_CHECKING:
    from speechft_merge.bench import SweepRequest as SweepRequest
    from speechft_merge.checkpoints import Checkpoint as Checkpoint
    from speechft_merge.checkpoints import open_checkpoint as open_checkpoint
    from speechft_merge.comparing import compare as compare
    from speechft_merge.errors import SpeechFTMergeError as SpeechFTMergeError
    from speechft_merge.in_memory import LiveMerge as LiveMerge
    from speechft_merge.in_memory import interpolate_ as interpolate_
    from speechft_merge.in_memory import merge_state_dicts as merge_state_dicts
    from speechft_merge.merging import Merge as Merge
    from speechft_merge.merging import MergeResult as MergeResult
    from speechft_merge.merging import merge as merge
    from speechft_merge.merging import open_merge as open_merge
    from speechft_merge.options import MergeOptions as MergeOptions
    from speechft_merge.plan.plan import Plan as Plan
    from speechft_merge.recipe.file import read_recipe as read_recipe
    from speechft_merge.recipe.recipe import Recipe as Recipe
    from speechft_merge.similarity.report import Report as Report
    from speechft_merge.similarity.request import ProbeRequest as ProbeRequest
    from speechft_merge.sweep.decision import Rule as Rule
    from speechft_merge.sweep.gate import parse_gate as parse_gate
    from speechft_merge.sweep.grid import lay_out as lay_out
    from speechft_merge.sweep.report import SweepReport as SweepReport
    from speechft_merge.verifying import Verification as Verification
    from speechft_merge.verifying import verify as verify

_HOMES = {
    "Checkpoint": "checkpoints",
    "LiveMerge": "in_memory",
    "Merge": "merging",
    "MergeOptions": "options",
    "MergeResult": "merging",
    "Plan": "plan.plan",
    "ProbeRequest": "similarity.request",
    "Recipe": "recipe.recipe",
    "Report": "similarity.report",
    "Rule": "sweep.decision",
    "SpeechFTMergeError": "errors",
    "SweepReport": "sweep.report",
    "SweepRequest": "bench",
    "Verification": "verifying",
    "compare": "comparing",
    "interpolate_": "in_memory",
    "lay_out": "sweep.grid",
    "merge": "merging",
    "merge_state_dicts": "in_memory",
    "open_checkpoint": "checkpoints",
    "open_merge": "merging",
    "parse_gate": "sweep.gate",
    "read_recipe": "recipe.file",
    "verify": "verifying",
}

__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] != "errors":  # what is raised can be caught everywhere
        require_system()
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
