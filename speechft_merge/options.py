"""Defines the options of a merge: how the work is done; the recipe says what is mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechft_merge.errors import UsageError
from speechft_merge.executor.device import AUTO, require_device_name
from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED

if TYPE_CHECKING:
    from speechft_merge.evidence import Evidence


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How a merge is done; the recipe says what is mixed."""

    overwrite: bool = False
    """Replace an output that already exists."""
    allow_unrelated: bool = False
    """Merge even if the models seem unrelated, or to be in the wrong order."""
    allow_partial: bool = False
    """Merge even if the fine-tune has a stack of the base in part only."""
    download: bool = False
    """Download models from the Hub to huggingface_hub's cache first, instead of reading ranges."""
    workers: int | None = None
    """Threads that work at once; None to choose."""
    device: str = AUTO
    """Where to compute: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; the bytes are the same."""
    fsync: bool = True
    """Wait until the output is on the disk."""
    max_shard_size: int | None = None
    """Most bytes of a weights file; None for a single file."""
    max_output: int | None = None
    """Most bytes of all weights; None for a hundred times those of the inputs, which only views of a few exceed."""
    verify_inputs: bool = False
    """Read the inputs whole first and compare their checksums; models on the Hub are downloaded for it."""
    command: tuple[str, ...] = ()
    """The command line, for the manifest and the model card."""
    evidence: Evidence | None = None
    """Why this recipe, likewise."""

    def __post_init__(self) -> None:
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise UsageError(f"a weights file of at most {self.max_shard_size} bytes holds nothing")
        require_device_name(self.device)

    @property
    def allowed(self) -> frozenset[str]:
        """The refusals that are merged all the same, by the option's name on the command line."""
        flags = {ALLOW_PARTIAL: self.allow_partial, ALLOW_UNRELATED: self.allow_unrelated}
        return frozenset(option for option, given in flags.items() if given)
