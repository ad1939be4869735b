"""Finds the convolutional front end of an encoder: by what families call it, and by the structure of any other.

It consists of whole modules, with the norms and projections in them: to freeze the `cnn` is to freeze all of it.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    Shapes = Mapping[str, tuple[int, ...]]

MAX_DEPTH = 16
"""Most words of a module's name that are looked at."""

_KNOWN = frozenset("feature_extractor feature_encoder subsampling patch_embeddings patch_embed".split())
"""Words for a front end, wherever it stands."""
_BESIDE = re.compile(
    r"(?:^|\.)(?:(?:pos_conv\w*|pos_encoder|encode_positions|relative_positional_encoder)(?=\.)"
    r"|embed\.\d+(?=\.convs\.)|(?:feature_projection|model_dim_proj)(?=\.)|(?:adapters?|upsample|downsample|decoder)\.)"
)
"""Convolutions that follow the front end, and projections; of positions too, as transformers, fairseq2, data2vec 2 and
ESPnet have them."""
_LEAVES = frozenset("weight bias weight_g weight_v running_mean running_var num_batches_tracked".split())
"""Tensors of a layer. Any other is its module's own, which is then more than a front end."""
_KERNELS = frozenset(["weight", "weight_v"])
_NORM = re.compile(r"(?:batch|group|instance)_?norm\w*|[bg]n_?\d*|(?:layer_?)?norm_?\d+|ln_?\d+")
"""Norms between convolutions that stand in the encoder one by one: Moonshine's `groupnorm`, a `bn1`."""


def find_front_ends(shapes: Shapes, stacks: Collection[str], encoders: Collection[str]) -> frozenset[str]:
    """Return the modules that make up the front ends of a model, each with a dot at its end.

    One is the outermost module with a convolution that holds neither blocks nor another part nor parameters of its
    own. It stands beside the blocks of an encoder; if none does so, beside the module with the only blocks of the model
    or of its half, as Mimi's does.

    Args:
        shapes: tensors outside of blocks, decoders and heads.
        stacks: paths of all lists of blocks, decoders' among them.
        encoders: the modules that hold the lists of encoders, each with a dot at its end.
    """
    holders = {""} | {module for path in stacks for module in _modules(f"{path}.")}
    holders |= {name[: name.rfind(".") + 1] for name in shapes if name[name.rfind(".") + 1 :] not in _LEAVES}
    beside = {name[: found.start() + 1] for name in shapes if (found := _BESIDE.search(name)) and found.start()}
    holders |= {module for parent in beside for module in _modules(parent)}
    within: set[str] = set()
    apart: set[str] = set()
    for name, shape in shapes.items():
        module = next((module for module in _modules(name) if module not in holders), "")
        if _is_known(module):
            within.add(module)
        elif module and _is_kernel(name, shape):
            (within if module.startswith(tuple(encoders)) else apart).add(module)
    halves = Counter(path.partition(".")[0] for path in stacks)
    alone = {module for module in apart if len(stacks) == 1 or halves[module.partition(".")[0]] == 1}
    modules = within or alone
    return frozenset(modules | set(_norms_between(modules, shapes)))


def in_modules(name: str, modules: Collection[str]) -> bool:
    """Return whether a tensor is in one of these modules."""
    return any(module in modules for module in _modules(name))


def _modules(name: str) -> Iterator[str]:
    """Yield the modules that a tensor is in, the outermost first: the model itself, which is nameless."""
    yield ""
    for dot in islice(re.finditer(r"\.", name), MAX_DEPTH):
        yield name[: dot.end()]


def _is_known(module: str) -> bool:
    """Return whether a module is called a front end; `frontend` may hold a whole encoder, and is none then."""
    words = module.split(".")[:-1]
    return not _KNOWN.isdisjoint(words) or words[-1:] == ["frontend"]


def _is_kernel(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and name[name.rfind(".") + 1 :] in _KERNELS and not _BESIDE.search(name)


def _norms_between(convolutions: Collection[str], shapes: Shapes) -> Iterator[str]:
    """Yield norms that stand beside convolutions."""
    parents = {module[: module[:-1].rfind(".") + 1] for module in convolutions}
    for name in shapes:
        parent, dot, word = name.rpartition(".")[0].rpartition(".")
        if parent + dot in parents and _NORM.fullmatch(word):
            yield f"{parent}{dot}{word}."
