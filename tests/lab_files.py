"""The files that S3PRL, fairseq, WavLM, Lightning and torchaudio write, with a model of `lab_models` in them."""

from __future__ import annotations

import argparse
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab_models import Lab

Weights = dict[str, torch.Tensor]

TASK = {"sample_rate": 16000, "normalize": True, "enable_padding": False, "label_rate": 50.0}
SYMBOLS = [["<s>", "<pad>", "</s>", "<unk>", *map(str, range(8))]]


class Choice(StrEnum):
    """fairseq's configurations hold members of enumerations beside plain text."""

    static = "static"


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def optimizer_of(weights: Weights) -> dict[str, Any]:
    """Adam's state: more numbers than the model has."""
    moments = [{"step": 7, "exp_avg": t.clone(), "exp_avg_sq": t.clone()} for t in weights.values()]
    return {"state": dict(enumerate(moments)), "param_groups": [{"lr": 1e-4, "params": list(range(len(moments)))}]}


def s3prl_base(lab: Lab, weights: Weights) -> dict[str, Any]:
    """What `load_and_convert_fairseq_ckpt` writes."""
    dictionaries = {"dictionaries_symbols": SYMBOLS} if lab.family == "hubert" else {}
    return {
        "task_cfg": dict(TASK),
        "model_cfg": {"_name": lab.family, **lab.settings},
        "model_weight": weights,
        **dictionaries,
    }


def s3prl_finetune(lab: Lab, weights: Weights) -> dict[str, Any]:
    """What `downstream/runner.py` saves with --upstream_trainable; the head is larger than the encoder."""
    upstream = prefixed("model.", weights)
    return {
        "Downstream": {"model.proj.weight": torch.randn(200, 300), "model.proj.bias": torch.randn(200)},
        "Featurizer": {"weights": torch.rand(3)},
        "Upstream": upstream,
        "Optimizer": optimizer_of(upstream),
        "Step": 1000,
        "Epoch": 3,
        "Args": argparse.Namespace(upstream=lab.family, upstream_trainable=True, downstream="asr", device="cuda"),
        "Config": {"runner": {"total_steps": 1000}, "optimizer": {"name": "TorchOptim", "lr": 1e-4}},
    }


def fairseq_hydra(lab: Lab, weights: Weights) -> dict[str, Any]:
    """fairseq since 2021: its whole configuration, kept by omegaconf."""
    cfg = {
        "common": {"seed": 1, "fp16": True},
        "task": {"_name": "hubert_pretraining", **TASK},
        "model": {"_name": lab.family, **lab.settings, "mask_selection": Choice.static.value},
        "optimizer": {"_name": "adam", "adam_betas": "(0.9,0.98)"},
    }
    return {
        "args": None,
        "cfg": OmegaConf.create(cfg),
        "model": weights,
        "optimizer_history": [{"num_updates": 400000, "optimizer_name": "FP16Optimizer"}],
        "task_state": {"dictionaries": [argparse.Namespace(symbols=SYMBOLS[0])]},
        "extra_state": {"epoch": 9, "val_loss": 2.5},
        "last_optimizer_state": optimizer_of(weights),
    }


def fairseq_container(lab: Lab, weights: Weights) -> dict[str, Any]:
    """The same, after `OmegaConf.to_container`."""
    whole = fairseq_hydra(lab, weights)
    return {**whole, "cfg": OmegaConf.to_container(whole["cfg"])}


def fairseq_args(lab: Lab, weights: Weights) -> dict[str, Any]:
    """fairseq before 2021."""
    args = argparse.Namespace(arch=lab.family, task="audio_pretraining", **lab.settings, **TASK)
    return {"args": args, "model": weights, "extra_state": {"epoch": 9}, "last_optimizer_state": optimizer_of(weights)}


def fairseq_ctc(lab: Lab, weights: Weights) -> dict[str, Any]:
    """A CTC fine-tune: the heads of pre-training are gone, the pre-trained model's configuration is in its own."""
    pretrained = OmegaConf.to_container(fairseq_hydra(lab, weights)["cfg"])
    bare = {
        n: t for n, t in weights.items() if not n.startswith(("quantizer", "project_q", "final_proj", "label_embs"))
    }
    head = {"w2v_encoder.proj.weight": torch.randn(12, lab.width), "w2v_encoder.proj.bias": torch.randn(12)}
    cfg = {
        "task": {"_name": "audio_finetuning", **TASK, "normalize": False},
        "model": {"_name": "wav2vec_ctc", "w2v_path": "/somewhere/base.pt", "w2v_args": pretrained, "mask_prob": 0.65},
    }
    model = prefixed("w2v_encoder.w2v_model.", bare) | head
    return {"args": None, "cfg": OmegaConf.create(cfg), "model": model, "extra_state": {}}


def wavlm(lab: Lab, weights: Weights) -> dict[str, Any]:
    return {"cfg": {**lab.settings, "normalize": False}, "model": weights}


def decoar2(lab: Lab, weights: Weights) -> dict[str, Any]:
    """DeCoAR 2.0's file, with what its class in S3PRL has no place for."""
    left = {"quantizer.vars": torch.rand(1, 16, 8), "final_proj.weight": torch.randn(8, lab.width)}
    return {"args": argparse.Namespace(arch="decoar2", **lab.settings), "model": weights | left, "extra_state": {}}


def spin(lab: Lab, weights: Weights) -> dict[str, Any]:
    """SPIN's Lightning checkpoint: the encoder beside the loss's own layers."""
    del lab
    return {
        "epoch": 1,
        "global_step": 5000,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": prefixed("encoder.model.", weights) | {"pred_head.weight": torch.randn(24, 32)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [optimizer_of(weights)],
    }


def plain(lab: Lab, weights: Weights) -> dict[str, Any]:
    del lab
    return dict(weights)


FILES: dict[str, Callable[[Lab, Weights], dict[str, Any]]] = {
    "S3PRL base": s3prl_base,
    "S3PRL fine-tune": s3prl_finetune,
    "fairseq with omegaconf": fairseq_hydra,
    "fairseq with tables": fairseq_container,
    "fairseq with argparse": fairseq_args,
    "fairseq CTC": fairseq_ctc,
    "WavLM": wavlm,
    "SPIN": spin,
    "plain": plain,
}
"""Every container that holds HuBERT's names."""
