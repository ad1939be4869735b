"""Chooses among the encoders of one file: teacher and student, a model and its average, nested or side by side."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from speechft_merge.errors import quote
from speechft_merge.layouts.alignment import align, rivals, twins
from speechft_merge.plan.evidence import matrices, relate
from speechft_merge.plan.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechft_merge.checkpoints.index import Checkpoint

_AVERAGES = re.compile(r"(^|.*_)(ema|avg|averaged?|swa|shadow)(_.*|$)")
"""Words for an average of the weights that lies beside the model: EMA, SWA, icefall's `model_avg`."""

WHOLE = 0.9
"""Share of it from which an encoder counts as whole: one may lack the mask's embedding, or have a kernel folded."""
LEAST_AGREEMENT = 0.5
"""Share of the best encoder's agreement with the other model that makes another one a rival of it."""


class Encoder(NamedTuple):
    """One of several encoders in a file."""

    name: str
    """What picks it: `REF#name`."""
    model: Checkpoint
    """The file's index without the others."""
    relation: str
    """`equal to`, `near` or `unrelated to` the other model."""
    whole: bool = True
    """Whether no other encoder of the file has more of the other model."""


def choose_encoders(base: Checkpoint, finetuned: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[Finding]]:
    """Return base and fine-tunes with one encoder each, and what is found where a file has several.

    One is plainly meant if the others are averages of the weights, unrelated to the other model, or have less of it.
    Neither the order of keys nor their length decides.
    """
    chosen, findings = [], []
    one, found = _choose(base, finetuned[0])
    findings += found
    for model in finetuned:
        other, found = _choose(model, one)
        chosen.append(other)
        findings += found
    return [one, *chosen], findings


def find_encoders(model: Checkpoint, other: Checkpoint) -> list[Encoder]:
    """Return the encoders of a file that fit another model about equally well; one if it has but one."""
    states = [(model.state_path, model), *model.alternatives.items()]  # of which one may be at the root, without a path
    found = [
        (agreement, at, prefix)
        for at, (_, state) in enumerate(states)
        for prefix, agreement in rivals(state.naming, other.naming)
    ]
    most = max(agreement for agreement, *_ in found)
    kept = [one for one in found if one[0] >= LEAST_AGREEMENT * most]
    encoders: dict[frozenset[object], Encoder] = {}  # by storages: one module may have several names
    for agreement, at, prefix in kept:
        path, state = states[at]
        view = _view(state, prefix, [tried for _, there, tried in kept if there == at])
        storages = frozenset(span.storage_key for span in view.tensors.values())
        label = prefix.rstrip(".") or path
        relation = _relation(view, other) if len(kept) > 1 else ""
        encoders.setdefault(storages, Encoder(label, view, relation, agreement >= WHOLE * most))
    return sorted(encoders.values(), key=lambda encoder: encoder.name)


def encoder_names(model: Checkpoint) -> list[str]:
    """Return the names of the encoders of one file, for `REF#name`; empty if it holds one.

    Dictionaries beside the model's count if they hold an encoder of its shapes.
    """
    inside = [prefix.rstrip(".") for prefix in twins(model.naming)]
    beside = [path for path, state in model.alternatives.items() if _fits(model, state)]
    return inside or ([model.state_path, *beside] if beside else [])


def _fits(model: Checkpoint, other: Checkpoint) -> bool:
    pairs = align(model.naming, other.naming).pairs
    return sum(model.tensors[name].elements for name in pairs) >= LEAST_AGREEMENT * model.naming.parameters()


def _choose(model: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, list[Finding]]:
    if model.modules and not model.picked:
        return model, [_unread(model)]
    encoders = find_encoders(model, other)
    if len(encoders) == 1:
        return encoders[0].model, []
    listed = ", ".join(f"{_label(one)} ({one.relation} {other.reference})" for one in encoders)
    text = f"{model.reference} holds {len(encoders)} encoders: {listed}"
    plain = [one for one in encoders if one.relation != "unrelated to"] or encoders
    plain = [one for one in plain if not _is_average(one.name)] or plain
    whole = [one for one in plain if one.whole]
    if len(whole) == 1 and whole[0].relation == "near":  # one that is the other model itself was not trained from it
        plain = whole
    if len(plain) == 1:
        return plain[0].model, [Finding(Level.NOTE, f"{text}; {_label(plain[0])} is taken")]
    hint = "name one of them: " + " or ".join(f"{model.reference}#{one.name}" for one in plain if one.name)
    if not all(one.name for one in plain):
        hint += "; or save the model without it"
    return plain[0].model, [Finding(Level.REFUSAL, text, hint)]


def _label(encoder: Encoder) -> str:
    return quote(encoder.name) if encoder.name else "the model itself"


def _unread(model: Checkpoint) -> Finding:
    """Return the reason to refuse a file in which another model is pickled as a module."""
    text = (
        f"{model.reference} holds a model that cannot be read, a pickled module under {quote(model.modules[0])}, "
        f"beside the tensors{f' under {quote(model.state_path)}' if model.state_path else ''}"
    )
    name = f"name the tensors if they are meant, {model.reference}#{model.state_path}, or " if model.state_path else ""
    return Finding(Level.REFUSAL, text, f"{name}load the file where it was made and save the module's state_dict()")


def _is_average(name: str) -> bool:
    return any(_AVERAGES.match(word) for word in name.split("."))


def _view(state: Checkpoint, prefix: str, prefixes: Sequence[str]) -> Checkpoint:
    """Return a file's index without what is under the prefixes of other encoders."""
    if len(prefixes) < 2:
        return state
    full, longest = state.naming.full, sorted(prefixes, key=len, reverse=True)
    owners = {own: next((one for one in longest if full[own].startswith(one)), prefix) for own in state.tensors}
    return replace(state, tensors={own: span for own, span in state.tensors.items() if owners[own] == prefix})


def _relation(view: Checkpoint, other: Checkpoint) -> str:
    pairs = align(other.naming, view.naming).pairs
    return relate(matrices((other.tensors[name], view.tensors[mine]) for name, mine in pairs.items()))
