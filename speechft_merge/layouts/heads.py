"""Lists the heads: modules of a task or of pre-training, by every name that they have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from speechft_merge.layouts.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

TASKS = frozenset("lm_head ctc_head classifier projector proj_out score tdnn objective layer_weights".split())
"""First words of the names of a task's heads."""

HEADS = TASKS | frozenset(
    "ctc_proj project_q project_hid final_proj final_target_proj speaker_proj target_glu label_embs_concat "
    "logit_generator label_embeddings_concat layer_norm_for_extract".split()
)
"""Likewise of all heads, those of pre-training and of bare models included, wherever they stand."""
EMBEDDINGS = ("embed_tokens", "token_embedding", "word_embeddings", "shared", "wte", "embedding", "embeddings", "embed")
"""Words for the embedding of words, which the head of a language model may be one with."""
_QUANTIZER = tuple(f"quantizer.{tensor}" for tensor in "codevectors vars entries weight_proj. entry_proj.".split())
"""wav2vec 2.0's, by transformers, fairseq and fairseq2. The codebooks of a codec are a part of the model."""

_OF_NEMO = "decoder.decoder_layers."
"""The output layer of NeMo's recognisers by CTC, whose decoder is nothing else."""

_CLASSES = {
    "ForCTC": ("lm_head.weight",),
    "ForPreTraining": ("quantizer.codevectors", "project_q.weight", "project_hid.weight"),
    "Model": (),
}
"""Ending of a transformers class -> a tensor of each head that it has; the first whose heads are present is taken."""

FAIRSEQ = Table.parse("w2v_encoder.proj  w2v_encoder.lm_head")
"""The head of fairseq's CTC fine-tunes, beside the encoder."""
TORCHAUDIO = Table.parse("aux  lm_head")
"""The head of torchaudio's, among the encoder's names."""
TORCHAUDIO_OLD = Table.parse("encoder.readout  lm_head")
"""Likewise before torchaudio 0.10."""


def is_head(name: str) -> bool:
    """Return whether a canonical name inside the encoder's prefix is nevertheless a head's."""
    first = name.partition(".")[0]
    return first in HEADS or first in ("head", "heads") or name.startswith((*_QUANTIZER, _OF_NEMO))


def is_of_pretraining(name: str) -> bool:
    """Return whether a canonical name is of a head of pre-training, which a task's loss does not reach."""
    return name.partition(".")[0] in HEADS - TASKS or name.startswith(_QUANTIZER)


def task_of(names: Collection[str]) -> str:
    """Return the ending of the class of transformers that has a place for the heads among these canonical names."""
    return next(task for task, needed in _CLASSES.items() if all(name in names for name in needed))


def heads_of(task: str) -> frozenset[str]:
    """Return the first words of the heads that a class of transformers has a place for."""
    return frozenset(name.partition(".")[0] for name in _CLASSES[task])


def class_like(architectures: object, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Return the settings of the class of a family that has the heads among these tensors; None if none is known.

    Args:
        architectures: of another class of the family, from its config.json.
        shapes: by own names.
    """
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    family = re.match(r"(.+?)(Model|For[A-Z]\w*)$", named) if isinstance(named, str) else None
    heads = {name.partition(".")[0] for name in shapes if is_head(name)}
    if family is None:
        return None
    if not heads:
        return {"architectures": [f"{family[1]}Model"]}
    if heads == {"lm_head"} and "lm_head.weight" in shapes:
        return {"architectures": [f"{family[1]}ForCTC"], "vocab_size": shapes["lm_head.weight"][0]}
    if heads - {"layer_weights"} == {"classifier", "projector"} and {"classifier.weight", "projector.weight"} <= {
        *shapes
    }:
        labels = shapes["classifier.weight"][0]
        return {
            "architectures": [f"{family[1]}ForSequenceClassification"],
            "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
            "label2id": {f"LABEL_{i}": i for i in range(labels)},
            "classifier_proj_size": shapes["projector.weight"][0],
            "use_weighted_layer_sum": "layer_weights" in heads,
        }
    return None
