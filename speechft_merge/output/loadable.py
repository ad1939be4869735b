"""Checks before the commit whether an output can be loaded by what its config.json says it is.

Without transformers: what the config says of depths and sizes is held against the tensors, their names against its
family, and the code that the small files name against what is there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from speechft_merge.checkpoints.companions import json_values, modules_of
from speechft_merge.errors import QUOTED, amount, quote
from speechft_merge.layouts.family import OWN_PREFIX
from speechft_merge.layouts.naming import read_naming
from speechft_merge.layouts.structure import blocks_of
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
_SIZES: tuple[tuple[str, int, re.Pattern[str]], ...] = tuple(
    (key, axis, re.compile(pattern))
    for key, axis, pattern in (
        ("d_model", 0, r"encoder\.layer_norm\.weight"),
        ("hidden_size", 0, r"encoder\.layer_norm\.weight"),
        ("intermediate_size", 0, r"encoder\.layers\.\d+\.(?:feed_forward|ffn[12])\.intermediate_dense\.weight"),
        ("encoder_ffn_dim", 0, r"encoder\.layers\.\d+\.fc1\.weight"),
        ("decoder_ffn_dim", 0, r"decoder\.layers\.\d+\.fc1\.weight"),
        ("conv_dim", 0, r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight"),
        ("conv_kernel", 2, r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight"),
        ("num_mel_bins", 1, r"encoder\.conv1\.weight"),
        ("max_source_positions", 0, r"encoder\.embed_positions\.weight"),
        ("max_target_positions", 0, r"decoder\.embed_positions\.weight"),
        ("vocab_size", 0, r"(?:lm_head|decoder\.embed_tokens)\.weight"),
    )
)
"""Key of a size, the axis that has it, and the canonical names of the tensors; of a list, the group is the index."""
_SWITCHES = (
    ("conv_bias", True, "feature_extractor.conv_layers.0.conv.bias", "feature_extractor.conv_layers.0.conv."),
    ("feat_extract_norm", "layer", "feature_extractor.conv_layers.1.layer_norm.", "feature_extractor.conv_layers.1."),
    ("add_adapter", True, "adapter.", ""),
)
"""Key of a switch, the setting that adds tensors, how their names begin, and those of the part that may have them."""
_HEADS = {
    "ForCTC": "lm_head.",
    "ForPreTraining": "quantizer.",
    "ForSequenceClassification": "classifier.",
    "ForAudioFrameClassification": "classifier.",
    "ForXVector": "classifier.",
}
"""Ending of a class with a family's prefix -> how names of its head begin."""
_PREFIXES = {family: ("", prefix) for family, prefix in OWN_PREFIX.items()} | dict.fromkeys(
    ("whisper", "speech_to_text", "moonshine", "moonshine_streaming"), ("", "model.")
)
"""Family -> what its classes have before the encoder's names."""
_STRANGE = re.compile(r"\d+|module|_orig_mod|net|student|teacher|backbone|upstream|base_model")
"""First words of a prefix that no class of transformers has."""
_CLASSIFIER = re.compile(r"For(Sequence|Audio|AudioFrame)Classification$")
_EVEN = frozenset({*OWN_PREFIX, "whisper", "speech_to_text"})
"""Families whose blocks are alike, but for what the first has for all."""


def check_loadable(config: Mapping[str, Any], shapes: Shapes, companions: Collection[str]) -> list[Finding]:
    """Return reasons to refuse an output that its class could not load, and warnings where something small is missing.

    Args:
        config: of the output.
        shapes: of its tensors, by name.
        companions: names of the files beside the weights.
    """
    naming = read_naming(shapes)
    names = {name.canonical: shapes[own] for own, name in naming.under().items()}
    problems = (*_depths(config, naming), *_sizes(config, names), *_parts(config, names), *_blocks(config, naming))
    findings = [
        Finding(Level.REFUSAL, f"the output could not be loaded by its config.json: {problem}", "mend that config.json")
        for problem in (*problems, *_strange_names(config, naming))
    ]
    return findings + [Finding(Level.WARNING, text) for text in _missing(config, names, companions)]


def has_class_names(config: Mapping[str, Any], naming: Naming) -> bool:
    """Return whether tensors have names with which a class of a config's family could load them."""
    return not any(_strange_names(config, naming))


def _depths(config: Mapping[str, Any], naming: Naming) -> Iterator[str]:
    stacks, known = naming.stacks, _family(config) in _PREFIXES
    inner = next((found for key in ("encoder_config", "encoder") if isinstance(found := config.get(key), dict)), {})
    for stack, keys in _DEPTHS.items():
        stated = inner if inner and stack == "encoder" else config
        key = next((key for key in keys if isinstance(stated.get(key), int)), None)
        if key is None or stack not in stacks or len(stacks[stack]) == stated[key]:
            continue
        fits = any(len(blocks) == stated[key] for blocks in stacks.values())  # Mimi's convolutions are `encoder.layers`
        if known or not (fits or len(stacks[stack]) in _stated_depths(config)):
            yield f"{key} is {stated[key]}, the {stack} has {amount(len(stacks[stack]), 'layer')}"
    alone = not known or _class(config).endswith(("ForAudioClassification", "Encoder"))
    if config.get("is_encoder_decoder") is True and not alone and "encoder" in stacks and "decoder" not in stacks:
        yield f"{_class(config)[:QUOTED] or 'its class'} has a decoder, and there are no weights of one"


def _stated_depths(config: Mapping[str, Any]) -> set[int]:
    """Return every depth that a config states; in a model of several, the encoder may be any of them."""
    settings = (setting for inside in json_values(config) if isinstance(inside, dict) for setting in inside.items())
    return {value for key, value in settings if key.endswith("layers") and isinstance(value, int)}


def _sizes(config: Mapping[str, Any], names: Shapes) -> Iterator[str]:
    told = set()
    for name, shape in names.items():
        for key, axis, pattern in _SIZES:
            found = pattern.fullmatch(name) if key in config and key not in told and axis < len(shape) else None
            size = _size(config[key], found) if found is not None else None
            if size is not None and size != shape[axis]:
                told.add(key)
                yield f"{key} is {size}, {name} has {shape[axis]}"
    labels = config.get("id2label")
    expected = len(labels) if isinstance(labels, dict) else 2
    classifier, width = names.get("classifier.weight"), config.get("classifier_proj_size")
    if _CLASSIFIER.search(_class(config)) and classifier:
        if classifier[0] != expected:
            yield f"it has {expected} labels, the classifier {classifier[0]}"
        if "projector.weight" in names and isinstance(width, int) and classifier[1:] != (width,):
            yield f"classifier_proj_size is {width}, the classifier has {quote(classifier[1:])}"


def _size(stated: object, found: re.Match[str]) -> int | None:
    """Return the size that a setting states for a tensor; 0 if a list is too short for it."""
    if isinstance(stated, list) and found.re.groups:
        index = int(found[1])
        stated = stated[index] if index < len(stated) else 0
    return stated if isinstance(stated, int) else None


def _parts(config: Mapping[str, Any], names: Shapes) -> Iterator[str]:
    """Yield switches of the config that tensors contradict."""
    if _family(config) not in OWN_PREFIX:
        return
    for key, setting, added, part in _SWITCHES:
        if key in config and any(name.startswith(part) for name in names):
            there = any(name.startswith(added) for name in names)
            if there is not (config[key] == setting):
                yield f"{key} is {quote(config[key])}, and there are {'' if there else 'no '}tensors {added}*"


def _blocks(config: Mapping[str, Any], naming: Naming) -> Iterator[str]:
    """Yield tensors that one block lacks and others have; the first may have what all of them use."""
    if _family(config) not in _EVEN:
        return
    found: dict[tuple[str, str], set[int]] = {}
    located = [name for name in naming.under().values() if name.location.block is not None]
    for name in located:
        within = name.canonical.partition(f".{name.location.block}.")[2]
        found.setdefault((str(name.location.stack), within), set()).add(int(name.location.block or 0))
    for stack, blocks in blocks_of(name.location for name in located).items():
        for (where, within), those in found.items():
            lacking = sorted({*blocks} - those)
            if where == stack and lacking and those != {0}:
                yield f"block {lacking[0]} of the {stack} lacks {quote(within)}"
                return


def _strange_names(config: Mapping[str, Any], naming: Naming) -> Iterator[str]:
    prefix, family = naming.prefix, _family(config)
    if family in _PREFIXES:
        strange = prefix not in _PREFIXES[family]
        if family in OWN_PREFIX:
            strange |= not any(name.canonical.startswith("encoder.") for name in naming.under().values())
    else:
        strange = bool(prefix) and _STRANGE.fullmatch(prefix.partition(".")[0]) is not None
    if strange:
        stated = str(config.get("model_type"))[:QUOTED]
        yield f"names such as {quote(next(iter(naming.shapes)))} are those of no class of {stated}"


def _missing(config: Mapping[str, Any], names: Shapes, companions: Collection[str]) -> Iterator[str]:
    """Yield what the output lacks, but without which it can be loaded in part."""
    code = [name for name in modules_of(config) if name not in companions]
    if code:
        yield f"config.json names {', '.join(name[:QUOTED] for name in code[:5])}, which is not beside the weights"
    head = next((head for ending, head in _HEADS.items() if _class(config).endswith(ending)), "")
    if _family(config) in OWN_PREFIX and not any(name.startswith(head) for name in names):
        yield f"config.json names the class {_class(config)[:QUOTED]}, and there are no weights of its head ({head}*)"


def _family(config: Mapping[str, Any]) -> str:
    """Return the family if its class is one of transformers; empty if it is somebody's own, which may do otherwise."""
    family, named = str(config.get("model_type")), _class(config).lower()
    own = config.get("auto_map") or (named and not named.startswith(re.sub(r"[-_]", "", family)))
    return "" if own else family


def _class(config: Mapping[str, Any]) -> str:
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""
