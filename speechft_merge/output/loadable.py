"""Checks before the commit whether an output can be loaded by what its config.json says it is.

Without transformers: the config's depths and widths are held against the tensors, and their names against its family.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.companions import modules_of
from speechft_merge.layouts.naming import read_naming
from speechft_merge.plan.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from speechft_merge.layouts.naming import Naming

    Shapes = Mapping[str, tuple[int, ...]]

_DEPTHS = {
    "encoder": ("encoder_layers", "encoder_num_hidden_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "decoder_num_hidden_layers"),
}
"""Stack -> keys of its depth; the first that a config has counts."""
_WIDTHS = ("d_model", "hidden_size")
_OF_THEIR_OWN = frozenset(
    "hubert wav2vec2 wavlm data2vec-audio unispeech unispeech-sat sew sew-d wav2vec2-conformer wav2vec2-bert".split()
)
"""Families whose classes have the family's name, or nothing, before the encoder's names."""
_STRANGE = re.compile(r"\d+|module|_orig_mod|net|student|teacher|backbone|upstream|base_model")
"""First words of a prefix that no class of transformers has."""
_CLASSIFIER = re.compile(r"For(Sequence|Audio|AudioFrame)Classification$")


def check_loadable(config: Mapping[str, Any], shapes: Shapes, companions: Collection[str]) -> list[Finding]:
    """Return reasons to refuse an output that its class could not load, and warnings where something small is missing.

    Args:
        config: of the output.
        shapes: of its tensors, by name.
        companions: names of the files beside the weights.
    """
    naming = read_naming(shapes)
    findings = [
        Finding(Level.REFUSAL, f"the output could not be loaded by its config.json: {problem}", "mend that config.json")
        for problem in (*_depths(config, naming), *_widths(config, naming), *_names(config, naming))
    ]
    missing = [f"{name}.py" for name in modules_of(config) if f"{name}.py" not in companions]
    if missing:
        text = f"config.json names {', '.join(dict.fromkeys(missing))}, which is not beside the weights"
        findings.append(Finding(Level.WARNING, text))
    return findings


def _depths(config: Mapping[str, Any], naming: Naming) -> Iterator[str]:
    stacks = naming.stacks
    for stack, keys in _DEPTHS.items():
        key = next((key for key in keys if isinstance(config.get(key), int)), None)
        if key is not None and stack in stacks and len(stacks[stack]) != config[key]:
            yield f"{key} is {config[key]}, the {stack} has {len(stacks[stack])} layers"
    alone = _class(config).endswith(("ForAudioClassification", "Encoder"))
    if config.get("is_encoder_decoder") is True and not alone and "encoder" in stacks and "decoder" not in stacks:
        yield f"{_class(config) or 'its class'} has a decoder, and there are no weights of one"


def _widths(config: Mapping[str, Any], naming: Naming) -> Iterator[str]:
    names = {name.canonical: naming.shapes[own] for own, name in naming.under().items()}
    width = next((config[key] for key in _WIDTHS if isinstance(config.get(key), int)), None)
    norm = names.get("encoder.layer_norm.weight")
    if width is not None and norm is not None and norm != (width,):
        yield f"it says a width of {width}, the encoder has one of {norm[0]}"
    words = config.get("vocab_size")
    for name in ("lm_head.weight", "decoder.embed_tokens.weight"):
        if isinstance(words, int) and name in names and names[name][0] != words:
            yield f"vocab_size is {words}, {name} has {names[name][0]} rows"
    labels = config.get("id2label")
    expected = len(labels) if isinstance(labels, dict) else 2
    classifier = names.get("classifier.weight")
    if _CLASSIFIER.search(_class(config)) and classifier is not None and classifier[0] != expected:
        yield f"it has {expected} labels, the classifier {classifier[0]}"


def _names(config: Mapping[str, Any], naming: Naming) -> Iterator[str]:
    prefix, family = naming.prefix, str(config.get("model_type"))
    own = f"{family.replace('-', '_')}."
    if family in _OF_THEIR_OWN:
        strange = prefix not in ("", own) or not any(
            n.canonical.startswith("encoder.") for n in naming.under().values()
        )
    else:
        strange = bool(prefix) and _STRANGE.fullmatch(prefix.partition(".")[0]) is not None
    if strange:
        yield f"names such as {next(iter(naming.shapes))!r} are those of no class of {family}"


def _class(config: Mapping[str, Any]) -> str:
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""
