"""Pairs of the labs' models with their twins in transformers, and what a merge of them must give."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from lab_models import BASE, Lab, LabModel, build_lab, shaken
from models import model_class, shapes_of

from speechft_merge.layouts.naming import read_naming

if TYPE_CHECKING:
    from pathlib import Path

    from lab_files import Weights

FAMILIES = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}
HUBERT = BASE["hubert"]
HEADS = ("final_proj", "label_embs_concat", "quantizer", "project_q", "project_hid")


def config_of(lab: Lab) -> dict[str, Any]:
    """What transformers calls the same settings."""
    dims, kernels, strides = zip(*lab.conv, strict=True)
    return {
        "hidden_size": lab.width,
        "num_hidden_layers": lab.layers,
        "num_attention_heads": lab.heads,
        "intermediate_size": lab.inner,
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": lab.conv_bias,
        "num_conv_pos_embeddings": lab.conv_pos,
        "num_conv_pos_embedding_groups": lab.conv_pos_groups,
        "feat_extract_norm": "layer" if lab.large else "group",
        "do_stable_layer_norm": lab.large,
        **({"conv_pos_batch_norm": True} if lab.batch_norm else {}),
        **({"num_buckets": lab.buckets, "max_bucket_distance": lab.distance} if lab.family == "wavlm" else {}),
    }


def twin(lab: Lab) -> Any:
    """A bare model of transformers of the same shape."""
    family = FAMILIES[lab.family]
    return model_class(family, "Model")(model_class(family, "Config")(**config_of(lab))).eval()


def modern(name: str) -> str:
    """Weight norm as transformers' classes have it now."""
    return re.sub(r"weight_([gv])$", lambda found: f"parametrizations.weight.original{'gv'.index(found[1])}", name)


def is_head(name: str) -> bool:
    return name.startswith(HEADS)


def loaded_twin(lab: Lab, model: LabModel) -> Any:
    """transformers' model with the lab's weights, each under the name that the table gives it; none may be missing."""
    weights = model.state_dict()
    naming = read_naming(shapes_of(weights))
    other = twin(lab)
    other.load_state_dict({modern(naming.full[n]): t for n, t in weights.items() if not is_head(n)}, strict=True)
    return other


def official(base: Weights, finetuned: Weights, alpha: float = 0.25) -> Weights:
    """What Speech-FT's script makes of two models of S3PRL: merge_utils.py's `linear`, heads kept from the base."""
    kept = {name for name, tensor in base.items() if name.startswith(HEADS) or not tensor.is_floating_point()}
    return {n: tensor if n in kept else tensor + alpha * (finetuned[n] - tensor) for n, tensor in base.items()}


def pair(lab: Lab) -> tuple[Weights, Weights]:
    base = build_lab(lab).state_dict()
    return base, shaken(base)


def save(whole: object, path: Path, legacy: bool = False) -> str:
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


def load(path: Path) -> Any:
    """As torch unpickles it, configuration and all: made by these tests, so not hostile."""
    return torch.load(path, weights_only=False)


def assert_equal(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def merged_file(folder: Path) -> Path:
    (path,) = folder.glob("merged_model.*")
    return path
