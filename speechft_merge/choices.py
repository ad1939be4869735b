"""Lists the words that an option may be, which help and completion offer, and refuses any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from speechft_merge.errors import UsageError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Estimator = Literal["group", "frame", "biased"]
Place = Literal["slurm", "local"]

METHODS = ("mean", "task-arithmetic", "model-stock")
DTYPES = ("keep", "float32", "float16", "bfloat16")
FORMATS = ("auto", "safetensors", "s3prl", "fairseq")
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
PLACES: tuple[Place, ...] = get_args(Place)

DTYPE_ALIASES = {
    "fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16",
    **{f"torch.{name}": name for name in DTYPES[1:]},
}  # fmt: skip
"""Other names of element types: torch's, and those of the Hugging Face Trainer's options."""


def choose(what: str, text: str, choices: Sequence[str], aliases: Mapping[str, str] | None = None) -> str:
    """Return the choice that a text names.

    Raises:
        UsageError: none of them.
    """
    chosen = (aliases or {}).get(text, text)
    if chosen in choices:
        return chosen
    from difflib import get_close_matches  # not for what is right

    near = get_close_matches(text[:50], choices, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"{what} {quote(text)} is unknown", hint=f"{meant}use one of {', '.join(choices)}")
