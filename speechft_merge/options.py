"""Defines the options of a merge: how the work is done; the recipe says what is mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechft_merge.arguments import require_fields
from speechft_merge.errors import UsageError
from speechft_merge.evidence import Evidence
from speechft_merge.executor.device import AUTO, require_device_name
from speechft_merge.plan.findings import ALLOW_PARTIAL, ALLOW_UNRELATED


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How a merge is done; the recipe says what is mixed.

    Args:
        overwrite: replace an output that already exists.
        allow_unrelated: merge even if the models seem unrelated, or to be in the wrong order.
        allow_partial: merge even if the fine-tune has a stack of the base in part only.
        download: download models from the Hub to huggingface_hub's cache first, instead of reading ranges.
        workers: threads that work at once; None to choose.
        device: where to compute: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; the bytes are the same.
        fsync: wait until the output is on the disk.
        max_shard_size: most bytes of a weights file; None for a single file.
        max_output: most bytes of all weights; None for a hundred times those of the inputs, which only views of a few
            exceed.
        verify_inputs: read the inputs whole first and compare their checksums; models on the Hub are downloaded for it.
        command: the command line, for the manifest and the model card.
        evidence: why this recipe, likewise.

    Raises:
        UsageError: a value is invalid.

    Example:
        >>> from speechft_merge import MergeOptions
        >>> MergeOptions(max_shard_size="2GB")
        Traceback (most recent call last):
        speechft_merge.errors.UsageError: max_shard_size must be a whole number or None; found str '2GB'
    """

    overwrite: bool = False
    allow_unrelated: bool = False
    allow_partial: bool = False
    download: bool = False
    workers: int | None = None
    device: str = AUTO
    fsync: bool = True
    max_shard_size: int | None = None
    max_output: int | None = None
    verify_inputs: bool = False
    command: Sequence[str] = ()
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise UsageError(f"a weights file of at most {self.max_shard_size} bytes holds nothing")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"{self.workers} workers cannot do any work", hint="give 1 or more")
        require_device_name(self.device)

    @property
    def allowed(self) -> frozenset[str]:
        """The refusals that are merged all the same, by the option's name on the command line."""
        flags = {ALLOW_PARTIAL: self.allow_partial, ALLOW_UNRELATED: self.allow_unrelated}
        return frozenset(option for option, given in flags.items() if given)
