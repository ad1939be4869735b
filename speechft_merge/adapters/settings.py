"""Reads how strongly LoRA acts, from the adapter_config.json beside it: no tensor tells its scale.

Source: peft's tuners/lora/config.py and utils/other.py (get_pattern_key).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from speechft_merge.checkpoints.companions import read_companion_json
from speechft_merge.errors import MismatchError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechft_merge.checkpoints.index import Checkpoint

CONFIG = "adapter_config.json"
MERGE = "load it with peft, merge_and_unload(), and save the whole model"

_OTHERWISE = frozenset(
    "lora_bias layer_replication trainable_token_indices target_parameters alora_invocation_tokens "
    "arrow_config kasa_config monteclora_config velora_config".split()
)
"""Settings under which W + scale * B A is not what the model computes; others of the kind begin with `use_`."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""How LoRA may begin: PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take away from the base's weights what they begin with."""

_TOKEN = re.compile(r"(\.[*+]|\\d\+(?!\d|\\d|\.)|\\d(?![*+?{])|\\?\.(?![*+?{])|[\w-](?![*+?{]))")
_PATTERN = re.compile(rf"\^?{_TOKEN.pattern}*\$?")
"""What a pattern for layers may consist of: letters, dots, a digit, digits before a letter, and anything at all. What
else an expression may have is rare in this place, and could take forever."""
_MEANING = {r"\d": "[0-9]", r"\d+": "[0-9]++", r"\.": r"\.", ".": "."}
LARGEST = 1e9
"""Of an alpha, or a rank."""
MAX_PATTERNS = 1000
MAX_LENGTH = 250
"""Most characters of a pattern, and of the path of a layer that is held against it."""


class Settings(NamedTuple):
    """The scale of LoRA: alpha / rank, or alpha / sqrt(rank) with rsLoRA, and its exceptions."""

    alpha: float
    rank_stabilised: bool = False
    transposed: bool = False
    """`fan_in_fan_out`: weights are (in, out)."""
    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    """Patterns of layers, and an alpha of their own; the first that fits."""
    rank: int | None = None
    """Of every layer, if it is stated and no pattern makes exceptions."""

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of B A in a layer, by its path in the model that was adapted.

        Raises:
            MismatchError: the settings state another rank.
        """
        if self.rank is not None and self.rank != rank:
            raise MismatchError(
                f"the adapter has rank {rank} in {quote(module)}, its {CONFIG} states {self.rank}",
                hint=f"put the {CONFIG} that was saved with it beside it",
            )
        path = module[: MAX_LENGTH + 1]
        alpha = next((value for pattern, value in self.alphas if pattern.fullmatch(path)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_settings(model: Checkpoint) -> Settings | None:
    """Read the settings of the LoRA in a checkpoint from the folder that it is in; None if there are none.

    Raises:
        MismatchError: it is another kind of adapter, or changes weights in a way that is not known here.
        CheckpointError: the file is not JSON.
    """
    config = read_companion_json(model, CONFIG)
    if not config:
        return None
    where = f"{model.reference}: its {CONFIG}"
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise MismatchError(f"{where} is that of {quote(kind)}, only LoRA can be merged as it is", hint=MERGE)
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        hint = "convert it to plain LoRA (peft: path_initial_model_for_weight_conversion), or " + MERGE
        raise MismatchError(f"{where} has init_lora_weights {quote(start)}, which changes the base as well", hint=hint)
    flags = {key: config[key] for key in ("use_rslora", "fan_in_fan_out") if key in config}
    odd = [key for key, value in flags.items() if not isinstance(value, (bool, type(None)))]
    variants = odd + [key for key, value in config.items() if value and (key in _OTHERWISE or _is_variant(key))]
    if variants:
        listed = ", ".join(sorted(variants)[:5])
        raise MismatchError(f"{where} has {listed}, only plain LoRA and rsLoRA can be merged as they are", hint=MERGE)
    return Settings(
        alpha=_number(config.get("lora_alpha", 8), where, "lora_alpha"),
        rank_stabilised=config.get("use_rslora") is True,
        transposed=config.get("fan_in_fan_out") is True,
        alphas=_patterns(config.get("alpha_pattern"), f"{where} has alpha_pattern"),
        rank=int(_number(config["r"], where, "r")) if "r" in config and not config.get("rank_pattern") else None,
    )


def _is_variant(key: object) -> bool:
    return isinstance(key, str) and key.startswith("use_") and key != "use_rslora"


def _number(value: object, where: str, key: str) -> float:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not abs(number) < LARGEST:
        raise MismatchError(f"{where} has {key} {quote(value) if isinstance(value, str) else ''}, expected a number")
    return float(number)


def _patterns(given: object, where: str) -> tuple[tuple[re.Pattern[str], float], ...]:
    """Return the patterns of a setting, each to be held against the whole path of a layer."""
    patterns: Mapping[str, Any] = given if isinstance(given, dict) else {}
    if (given and not isinstance(given, dict)) or len(patterns) > MAX_PATTERNS:
        raise MismatchError(f"{where} of {len(patterns)} entries, expected a table of at most {MAX_PATTERNS}")
    for pattern in patterns:
        if len(pattern) > MAX_LENGTH or not _PATTERN.fullmatch(pattern):
            raise MismatchError(f"{where} for {quote(pattern)}, which is no name of layers", hint=MERGE)
    return tuple((_compile(pattern), _number(value, where, quote(pattern))) for pattern, value in patterns.items())


def _compile(pattern: str) -> re.Pattern[str]:
    """Return a pattern as peft has it, `(.*\\.)?(pattern)$`, in a form that takes linear time: any file may have any.

    What is between two wildcards is taken where it comes first, and never elsewhere, as fnmatch does.
    """
    pieces = [""]
    for token in _TOKEN.findall(pattern):
        if token in (".*", ".+"):
            pieces[-1] += "." * (token == ".+")
            pieces.append("")
        else:
            pieces[-1] += _MEANING.get(token, token)
    first, *inner = pieces
    rest = "".join(f"(?>.*?{piece})" for piece in inner[:-1]) + (f".*{inner[-1]}" if inner else "")
    anywhere = "" if pattern.startswith("^") else rf"|(?>.*?\.{first}){rest}" if inner else rf"|.*\.{first}"
    return re.compile(f"{first}{rest}{anywhere}")
