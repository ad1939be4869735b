"""What goes in comes out: for each toolkit's container the same file with merged numbers, written after its published
structure; and a note on what in it belongs to the weights before the merge."""

from __future__ import annotations

import argparse
import io
import pickle
import re
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from lab_files import fairseq_hydra, optimizer_of, prefixed
from lab_models import build_lab, shaken
from lab_pairs import HUBERT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

Weights = dict[str, torch.Tensor]
ALPHA = 0.25
HEADS = ("final_proj.", "label_embs_concat")
"""Heads of pre-training, which stay the base's."""


# models, by what their tensors are called
def stack(blocks: str, parts: str, front: str = "embed.conv.0.weight", last: str = "after_norm.weight") -> Weights:
    """An encoder of two blocks; `blocks` has a place for the number."""
    names = [front, *(f"{blocks.format(i)}.{part}.weight" for i in range(2) for part in parts.split()), last]
    return {name: torch.randn(*((16,) if "norm" in name or "bias" in name else (16, 16))) for name in names}


ESPNET = "self_attn.linear_q self_attn.linear_k feed_forward.w_1 norm_mha"


def hubert() -> Weights:
    return build_lab(HUBERT).state_dict()


def conformer() -> Weights:
    return prefixed("encoder.", stack("encoders.{}", ESPNET)) | {"ctc.ctc_lo.weight": torch.randn(9, 16)}


def branchformer() -> Weights:
    return prefixed("encoder.", stack("encoders.{}", f"{ESPNET} cgmlp.channel_proj1", "embed.0.weight"))


def zipformer() -> Weights:
    parts = "self_attn_weights.in_proj feed_forward1.in_proj conv_module1.in_proj"
    first = stack("encoder.encoders.0.layers.{}", parts, "encoder_embed.conv.0.weight", "encoder_embed.out.bias")
    return first | stack("encoder.encoders.1.encoder.layers.{}", parts, "encoder.encoders.1.downsample.bias")


def fast_conformer() -> Weights:
    parts = "self_attn.linear_q self_attn.linear_pos feed_forward1.linear1 norm_out"
    return prefixed("encoder.", stack("layers.{}", parts, "pre_encode.out.weight", "norm.weight"))


def conformer_of_fairseq2() -> Weights:
    parts = "self_attn.q_proj ffn.inner_proj self_attn_layer_norm"
    return stack("encoder.layers.{}", parts, "encoder_frontend.post_extract_proj.weight", "encoder.layer_norm.weight")


def data2vec2() -> Weights:
    return stack(
        "blocks.{}", "attn.qkv mlp.fc1 norm1", "modality_encoders.AUDIO.project_features.2.weight", "norm.bias"
    )


def av_hubert() -> Weights:
    return hubert() | {
        f"feature_extractor_video.resnet.trunk.layer{i}.0.conv1.weight": torch.randn(4, 4) for i in (1, 2)
    }


def whisper() -> Weights:
    parts = "attn.query attn.key attn_ln mlp.0"
    encoder = stack("encoder.blocks.{}", parts, "encoder.conv1.weight", "encoder.ln_post.weight")
    return encoder | stack("decoder.blocks.{}", parts, "decoder.token_embedding.weight", "decoder.ln.weight")


def of_transformers() -> Weights:
    parts = "attention.q_proj attention.out_proj feed_forward.intermediate_dense layer_norm"
    return stack(
        "model.encoder.layers.{}", parts, "model.feature_projection.projection.weight", "model.encoder.layer_norm.bias"
    )


# files
def icefall(weights: Weights) -> dict[str, Any]:
    """`save_checkpoint`: `model_avg` is as large as `model`, of another type, and comes before it here."""
    return {
        "model_avg": {name: tensor.double() + 0.5 for name, tensor in weights.items()},
        "model": weights,
        "optimizer": optimizer_of(weights),
        "scheduler": {"epoch": 3, "batch": 99, "base_lrs": [0.045]},
        "grad_scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "sampler": {"epoch": 3, "seed": 0},
        "batch_idx_train": 99,
        "best_train_loss": 0.5,
        "params": {"feature_dim": 80, "use_averaged_model": True},
    }


def espnet_training(weights: Weights) -> dict[str, Any]:
    optimizer = optimizer_of(weights)
    reporter = {"epoch": 2, "stats": {1: {"valid": {"loss": 0.5}}}}
    return {"model": weights, "reporter": reporter, "optimizers": [optimizer], "schedulers": [None], "scaler": None}


def funasr(weights: Weights) -> dict[str, Any]:
    optimizer = optimizer_of(weights)
    return {"epoch": 1, "state_dict": weights, "optimizer": optimizer, "scheduler": {}, "saved_ckpts": {}, "step": 7}


def data2vec2_file(weights: Weights) -> dict[str, Any]:
    """fairseq's EMAModule saves its copy within the model."""
    model = {**weights, "_ema": {name: tensor + 1 for name, tensor in weights.items() if name.startswith("blocks.")}}
    return fairseq_hydra(HUBERT, weights) | {"model": model, "last_optimizer_state": None}


def distiller(weights: Weights) -> dict[str, Any]:
    args = argparse.Namespace(upstream="distiller", device="cpu")
    config = {"distiller": {"encoder_layers": 2, "n_tasks": 3}}
    return {"Distiller": weights, "Config": config, "Args": args, "Optimizer": optimizer_of(weights), "Step": 200000}


def plain_loop(weights: Weights) -> dict[str, Any]:
    copy = {f"module.{name}": tensor * 2 for name, tensor in weights.items()}
    return {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": optimizer_of(weights), "ema": copy}


class Container(NamedTuple):
    """A kind of file: the model in it, what is around the weights, and where they are."""

    model: Callable[[], Weights]
    whole: Callable[[Weights], Any] = dict
    path: tuple[str, ...] = ()
    suffix: str = ".pt"
    stale: str = ""
    """What the note must tell."""


def under(key: str, **beside: Any) -> Callable[[Weights], dict[str, Any]]:
    return lambda weights: {key: weights, **beside}


def of_fairseq(weights: Weights) -> dict[str, Any]:
    return fairseq_hydra(HUBERT, weights)


DIMS = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 2}


def told(optimizer: str = "", scheduler: str = "", copy: str = "") -> str:
    """What a note tells of these entries."""
    whats = {scheduler: "a scheduler's state", optimizer: "an optimizer's state", copy: "another copy of the weights"}
    return ", ".join(rf"'{path}' \({what}\)" for path, what in whats.items() if path)


CONTAINERS = {
    "icefall": Container(
        zipformer, icefall, ("model",), stale=told("optimizer", "scheduler", "model_avg")
    ),
    "icefall, published": Container(zipformer, under("model"), ("model",)),
    "ESPnet": Container(conformer, suffix=".pth"),
    "ESPnet, training": Container(conformer, espnet_training, ("model",), ".pth", told("optimizers", "schedulers")),
    "WeNet": Container(conformer),
    "FunASR": Container(conformer, funasr, ("state_dict",), stale=told("optimizer", "scheduler")),
    "fairseq2": Container(conformer_of_fairseq2, under("model", fs2=True), ("model",)),
    "fairseq2, legacy": Container(conformer_of_fairseq2, under("model_state", step_nr=9), ("model_state",)),
    "ContentVec": Container(hubert, of_fairseq, ("model",), stale=told("last_optimizer_state")),
    "data2vec 2": Container(data2vec2, data2vec2_file, ("model",), stale=told(copy="model._ema")),
    "AV-HuBERT": Container(av_hubert, of_fairseq, ("model",), stale=told("last_optimizer_state")),
    "DistilHuBERT": Container(hubert, distiller, ("Distiller",), ".ckpt", told("Optimizer")),
    "XEUS": Container(branchformer, suffix=".pth"),
    "BEST-RQ": Container(branchformer, under("model", epoch=9), ("model",)),
    "openai-whisper": Container(whisper, lambda w: {"dims": DIMS, "model_state_dict": w}, ("model_state_dict",)),
    "SpeechBrain": Container(of_transformers, suffix=".ckpt"),
    "a plain loop": Container(
        hubert, plain_loop, ("model_state_dict",), ".pth.tar",
        told("optimizer_state_dict", copy="ema"),
    ),
    "NeMo": Container(fast_conformer, suffix=".nemo"),
    "mini-audio": Container(of_transformers, under("model"), ("model",), ".th"),
    "SentencePiece's suffix": Container(of_transformers, suffix=".model"),
}  # fmt: skip


def write(content: Any, path: Path, legacy: bool = False) -> None:
    saved = path.with_suffix(".saved") if path.suffix == ".nemo" else path
    torch.save(content, saved, _use_new_zipfile_serialization=not legacy)
    if path.suffix == ".nemo":
        with tarfile.open(path, "w") as archive:
            for name in ("./model_config.yaml", "./vocab.model", "./model_weights.ckpt", "./z.yaml"):
                data = saved.read_bytes() if name.endswith("ckpt") else f"of {name}".encode()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def read(path: Path) -> Any:
    """What torch reads, after the CRCs of the zip were compared."""
    content = io.BytesIO(path.read_bytes())
    if path.suffix == ".nemo":
        with tarfile.open(fileobj=content) as archive:
            (offset, size), *_ = ((m.offset_data, m.size) for m in archive if m.name == "./model_weights.ckpt")
        content = io.BytesIO(content.getvalue()[offset : offset + size])
    with zipfile.ZipFile(content) as zipped:
        assert zipped.testzip() is None
    content.seek(0)
    return torch.load(content, weights_only=False)


def changed(old: Any, new: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths of what differs; what torch read has the same structure in both."""
    assert type(old) is type(new)
    if isinstance(old, torch.Tensor):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        return set() if torch.equal(old, new) else {path}
    if isinstance(old, dict):
        assert list(old) == list(new)
        return {found for key in old for found in changed(old[key], new[key], (*path, str(key)))}
    if isinstance(old, list):
        assert len(old) == len(new)
        return {found for i, item in enumerate(old) for found in changed(item, new[i], (*path, str(i)))}
    return set() if repr(old) == repr(new) else {path}


def at(whole: Any, path: tuple[str, ...]) -> Weights:
    for key in path:
        whole = whole[key]
    return {name: tensor for name, tensor in whole.items() if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_same_container_comes_back_with_merged_numbers(kind: str, run: Run, tmp_path: Path) -> None:
    container = CONTAINERS[kind]
    torch.manual_seed(0)
    base = container.model()
    weights = {"base": base, "ft": shaken(base)}
    paths = {name: tmp_path / f"{name}{container.suffix}" for name in weights}
    for name, path in paths.items():
        write(container.whole(weights[name]), path)
    ran = run(paths["base"], paths["ft"], "-o", tmp_path / "out", "--no-fsync")
    assert ran.code == 0, ran.err
    merged = tmp_path / "out" / f"merged_model{container.suffix}"
    old, new = read(paths["base"]), read(merged)
    mixed = {name for name in at(old, container.path) if not name.startswith(HEADS)}
    assert changed(old, new) == {
        (*container.path, name) for name in mixed if not torch.equal(base[name], weights["ft"][name])
    }
    for name, tensor in at(new, container.path).items():
        wanted = base[name] + (ALPHA * (weights["ft"][name] - base[name]) if name in mixed else 0)
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-6, msg=name)
    if container.suffix == ".nemo":
        assert_same_outside(paths["base"].read_bytes(), merged.read_bytes())
    notes = [line for line in ran.err.splitlines() if "as before the merge" in line]
    assert bool(notes) == bool(container.stale), ran.err
    if container.stale:
        (note,) = notes
        assert re.search(rf"note: the output has {container.stale} of \S+ as before the merge", note)
        assert "as before the merge" in (tmp_path / "out" / "README.md").read_text()


def without(whole: Any, paths: list[tuple[str, ...]]) -> Any:
    for *outer, key in paths:
        holder = whole
        for step in outer:
            holder = holder[step]
        del holder[key]
    return whole


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 5:UserWarning")
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind", [kind for kind, container in CONTAINERS.items() if container.stale])
def test_strip_leaves_out_what_is_stale_and_nothing_else(kind: str, protocol: int, run: Run, tmp_path: Path) -> None:
    container = CONTAINERS[kind]
    torch.manual_seed(0)
    base = container.model()
    paths = {name: tmp_path / f"{name}{container.suffix}" for name in ("base", "ft")}
    torch.save(container.whole(base), paths["base"], pickle_protocol=protocol)
    torch.save(container.whole(shaken(base)), paths["ft"])
    words = [paths["base"], paths["ft"], "--no-fsync"]
    assert run(*words, "-o", tmp_path / "whole").code == 0
    ran = run(*words, "-o", tmp_path / "out", "--strip")
    assert ran.code == 0
    assert "as before the merge" not in ran.err
    name = f"merged_model{container.suffix}"
    stale = [tuple(path.split(".")) for path in re.findall(r"'([\w.]+)'", container.stale)]
    wanted, found = without(read(tmp_path / "whole" / name), stale), read(tmp_path / "out" / name)
    assert changed(wanted, found) == set()
    with zipfile.ZipFile(tmp_path / "out" / name) as archive:
        storages = [entry for entry in archive.infolist() if "/data/" in entry.filename]
        tensors = at(found, container.path).values()
        assert len(storages) == len({tensor.untyped_storage().data_ptr() for tensor in tensors})
        for entry in archive.infolist():
            header = (tmp_path / "out" / name).read_bytes()[entry.header_offset :][:30]
            assert (entry.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))) % 64 == 0
    if torch_opens(paths["base"]):
        assert torch_opens(tmp_path / "out" / name)
    assert run("verify", tmp_path / "out").code == 0
    assert run(tmp_path / "out", paths["ft"], "-o", tmp_path / "again", "--no-fsync", "--verify-inputs").code == 0


def torch_opens(path: Path) -> bool:
    """Whether torch reads a file without being told to trust it."""
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


STRIPPED_IN_VAIN = {
    "nothing stale": (dict, {}, "holds nothing that --strip leaves out"),
    "legacy": (
        plain_loop,
        {"_use_new_zipfile_serialization": False},
        "torch legacy; load it with torch and save it again",
    ),
}


@pytest.mark.parametrize("kind", STRIPPED_IN_VAIN)
def test_strip_without_effect_is_a_usage_error(kind: str, run: Run, tmp_path: Path) -> None:
    whole, options, told = STRIPPED_IN_VAIN[kind]
    base = hubert()
    for name, weights in {"base.pt": base, "ft.pt": shaken(base)}.items():
        torch.save(whole(weights), tmp_path / name, **options)
    ran = run(tmp_path / "base.pt", tmp_path / "ft.pt", "-o", tmp_path / "out", "--strip")
    assert (ran.code, (tmp_path / "out").exists()) == (2, False)
    assert told in ran.err.replace("\n  hint: ", "; ").replace("\nhint: ", "; ")
    ran = run(tmp_path / "base.pt", tmp_path / "ft.pt", "-o", tmp_path / "out", "--strip", "--format", "safetensors")
    assert ran.code == 2


def assert_same_outside(old: bytes, new: bytes) -> None:
    """A tar's headers and its other files are the same bytes."""
    with tarfile.open(fileobj=io.BytesIO(old)) as archive:
        weights = archive.getmember("./model_weights.ckpt")
    end = weights.offset_data + weights.size
    assert old[: weights.offset_data] == new[: weights.offset_data]
    assert old[end:] == new[end:]


@pytest.mark.parametrize("owner", ["base", "ft"])
def test_an_archive_of_nemo_merges_with_the_plain_file_of_its_names(owner: str, run: Run, tmp_path: Path) -> None:
    base = fast_conformer()
    weights = {"base": base, "ft": shaken(base)}
    suffixes = {name: ".nemo" if name == owner else ".ckpt" for name in weights}
    for name, suffix in suffixes.items():
        write(weights[name], tmp_path / f"{name}{suffix}")
    words = [tmp_path / f"base{suffixes['base']}", tmp_path / f"ft{suffixes['ft']}"]
    assert run(*words, "-o", tmp_path / "out", "--no-fsync", "--verify-inputs").code == 0
    found = read(tmp_path / "out" / f"merged_model{suffixes['base']}")
    for name, tensor in base.items():
        torch.testing.assert_close(found[name], tensor + ALPHA * (weights["ft"][name] - tensor), rtol=1e-6, atol=1e-6)
    assert run("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["./model_config.yaml", "./z.yaml"])
def test_other_files_in_an_archive_make_another_merge(legacy: bool, name: str, run: Run, tmp_path: Path) -> None:
    base = fast_conformer()
    write(base, tmp_path / "base.nemo", legacy)
    write(shaken(base), tmp_path / "ft.nemo", legacy)
    words = [tmp_path / "base.nemo", tmp_path / "ft.nemo", "-o", tmp_path / "out", "--no-fsync"]
    assert run(*words).code == 0
    assert "already" in run(*words).out
    content, told = (tmp_path / "base.nemo").read_bytes(), f"of {name}".encode()
    (tmp_path / "base.nemo").write_bytes(content.replace(told, told.swapcase()))
    assert run(*words, "--overwrite").code == 0
    assert told.swapcase() in (tmp_path / "out/merged_model.nemo").read_bytes()
