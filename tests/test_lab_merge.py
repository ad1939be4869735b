"""Merging the labs' checkpoints, in any combination, and what is written: their own files, or transformers' models."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lab_files import (
    FILES,
    SYMBOLS,
    TASK,
    Weights,
    decoar2,
    fairseq_ctc,
    fairseq_hydra,
    plain,
    prefixed,
    s3prl_base,
    s3prl_finetune,
    spin,
    wavlm,
)
from lab_models import BASE, LABS, Lab, build_lab, shaken
from models import model_class, transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_layouts import FAMILIES, loaded_twin

from speechft_merge import Recipe, merge, prepare
from speechft_merge.errors import CheckpointError, MismatchError, UsageError
from speechft_merge.selectors import parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

HEADS = ("final_proj", "label_embs_concat", "quantizer", "project_q", "project_hid")
HUBERT = BASE["hubert"]


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


# a lab's file, written back
@pytest.mark.parametrize("legacy", [False, True])
def test_two_files_of_s3prl_give_what_the_official_script_gives(legacy: bool, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "hubert_base.pt", legacy)
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "dev-best.ckpt")
    merge(ours, theirs, tmp_path / "out", durable=False)
    whole = load(tmp_path / "out" / "merged_model.pt")
    assert_equal(whole.pop("model_weight"), official(base, finetuned))
    assert whole == {
        "task_cfg": TASK,
        "model_cfg": {"_name": "hubert", **HUBERT.settings},
        "dictionaries_symbols": SYMBOLS,
    }


WRITERS: dict[str, Callable[[Lab, Weights], dict[str, Any]]] = {**FILES, "DeCoAR 2.0": decoar2}
STATE = {"S3PRL base": "model_weight", "S3PRL fine-tune": "Upstream", "SPIN": "state_dict", "plain": None}


@pytest.mark.parametrize("kind", WRITERS)
def test_everything_else_in_the_base_is_kept(kind: str, tmp_path: Path) -> None:
    """Bit for bit, but for the merged tensors and, in a zip, their records' CRCs."""
    lab = BASE["decoar2"] if kind == "DeCoAR 2.0" else HUBERT
    base, finetuned = pair(lab)
    ours = save(WRITERS[kind](lab, base), tmp_path / "base.ckpt")
    merge(ours, save(s3prl_finetune(lab, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    before, after = (tmp_path / "base.ckpt").read_bytes(), merged_file(tmp_path / "out").read_bytes()
    assert len(before) == len(after)
    old, new = load(tmp_path / "base.ckpt"), load(merged_file(tmp_path / "out"))
    key = STATE.get(kind, "model")
    states = (old, new) if key is None else (old.pop(key), new.pop(key))
    assert_equal(states[1], expected_in(states[0], base, finetuned))
    if key is not None:
        assert repr(old) == repr(new)
    allowed = bytearray(len(before))
    for start, stop in merged_ranges(tmp_path / "base.ckpt", before):
        allowed[start:stop] = b"\1" * (stop - start)
    assert all(allowed[i] for i in range(len(before)) if before[i] != after[i])


def expected_in(state: Weights, base: Weights, finetuned: Weights) -> Weights:
    """A state dict as the merge should leave it, by the encoder's names at the end of its own."""
    merged = official(base, finetuned)
    prefix = next(name for name in state if name.endswith("encoder.pos_conv.0.bias")).removesuffix(
        "encoder.pos_conv.0.bias"
    )
    return {name: merged.get(name.removeprefix(prefix), tensor) for name, tensor in state.items()}


def merged_ranges(path: Path, content: bytes) -> list[tuple[int, int]]:
    """Where a zip of torch's may change: data of storages, the descriptor behind each, CRCs of the directory."""
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir
    ranges = []
    for entry in entries:
        name, extra = struct.unpack_from("<2H", content, entry.header_offset + 26)
        start = entry.header_offset + 30 + name + extra
        lengths = struct.unpack_from("<3H", content, position + 28)
        if "/data/" in entry.filename:
            ranges += [(start, start + entry.file_size), (start + entry.file_size + 4, start + entry.file_size + 8)]
            ranges.append((position + 16, position + 20))
        position += 46 + sum(lengths)
    return ranges


@pytest.mark.parametrize("kind", WRITERS)
def test_the_checksums_in_the_zip_are_right(kind: str, tmp_path: Path) -> None:
    lab = BASE["decoar2"] if kind == "DeCoAR 2.0" else HUBERT
    base, finetuned = pair(lab)
    ours = save(WRITERS[kind](lab, base), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(lab, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    with zipfile.ZipFile(merged_file(tmp_path / "out")) as archive:
        assert archive.testzip() is None


def test_a_base_packed_by_another_zip_program_is_written_back_in_its_form(tmp_path: Path) -> None:
    """Without descriptors: the CRC stands before the data."""
    base, finetuned = pair(HUBERT)
    save(s3prl_base(HUBERT, base), tmp_path / "torch.pt")
    with zipfile.ZipFile(tmp_path / "torch.pt") as old, zipfile.ZipFile(tmp_path / "base.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(str(tmp_path / "base.pt"), theirs, tmp_path / "out", durable=False)
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("S3PRL base", ".pt"), ("SPIN", ".ckpt"), ("plain", ".pth"), ("WavLM", "")]
)
def test_the_output_is_called_merged_model_with_the_bases_suffix(kind: str, suffix: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(FILES[kind](HUBERT, base), tmp_path / f"base{suffix}")
    result = merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"merged_model{suffix or '.pt'}", "README.md", "speechft_merge.json",
    }  # fmt: skip
    assert [entry["file"] for entry in result.manifest["outputs"]] == [f"merged_model{suffix or '.pt'}"]


def test_the_card_says_what_kind_of_file_the_weights_are(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "hubert_base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "dev-best.ckpt")
    merge(ours, theirs, tmp_path / "out", durable=False)
    merge(ours, theirs, tmp_path / "tf", Recipe(format="safetensors"), durable=False)
    sentence = "`merged_model.pt` is a file like `hubert_base.pt`"
    card, other = ((tmp_path / folder / "README.md").read_text() for folder in ("out", "tf"))
    assert (sentence in card, "library_name: transformers" in card) == (True, False)
    assert ("is a file like" in other, "library_name: transformers" in other) == (False, True)


def test_a_merge_can_be_the_base_of_the_next(tmp_path: Path) -> None:
    """Sequential Speech-FT: each output is the next base, as a directory."""
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "first", durable=False)
    merge(str(tmp_path / "first"), theirs, tmp_path / "second", durable=False)
    twice = official(official(base, finetuned), finetuned)
    assert_equal(load(tmp_path / "second" / "merged_model.pt")["model_weight"], twice)


def test_a_finished_output_is_known_again_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "out", durable=False)
    assert merge(ours, theirs, tmp_path / "out", durable=False).already_done
    path = tmp_path / "out" / "merged_model.pt"
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    assert not merge(ours, theirs, tmp_path / "out", durable=False, force=True).already_done
    assert path.read_bytes() == whole


@pytest.mark.parametrize("legacy", [False, True])
def test_another_configuration_beside_equal_weights_is_another_merge(legacy: bool, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    whole = s3prl_base(HUBERT, base)
    ours = save(whole, tmp_path / "base.pt", legacy)
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "out", durable=False)
    whole["task_cfg"]["normalize"] = False
    save(whole, tmp_path / "base.pt", legacy)
    assert not merge(ours, theirs, tmp_path / "out", durable=False, force=True).already_done
    assert load(tmp_path / "out" / "merged_model.pt")["task_cfg"]["normalize"] is False


@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_bytes_whatever_the_number_of_workers(workers: int, tmp_path: Path) -> None:
    lab = Lab("hubert", width=256, inner=2048, conv_pos_groups=2)  # tensors of several chunks
    base, finetuned = pair(lab)
    ours = save(s3prl_base(lab, base), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(lab, finetuned), tmp_path / "ft"), tmp_path / "out", workers=workers, durable=False)
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned))
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None


def test_with_its_head_a_fine_tune_of_s3prl_is_written_as_s3prl_writes_it(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    whole = s3prl_finetune(HUBERT, finetuned)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    merge(ours, save(whole, tmp_path / "ft.ckpt"), tmp_path / "out", Recipe(keep_head=True), durable=False)
    found = load(tmp_path / "out" / "merged_model.ckpt")
    assert_equal(found["Upstream"], prefixed("model.", official(base, finetuned)))
    assert_equal(found["Downstream"], whole["Downstream"])
    assert found["Args"] == whole["Args"]


def test_with_its_head_a_fine_tune_of_fairseq_is_the_pattern_whatever_the_base_is(tmp_path: Path) -> None:
    """Continued pre-training in fairseq from a base that only transformers' form is at hand of."""
    base, finetuned = pair(HUBERT)
    loaded_twin(HUBERT, build_lab(HUBERT)).save_pretrained(tmp_path / "base")
    theirs = save(fairseq_hydra(HUBERT, finetuned), tmp_path / "ft.pt")
    recipe = Recipe(keep_head=True, format="fairseq")
    merge(str(tmp_path / "base"), theirs, tmp_path / "out", recipe, durable=False)
    found = load(tmp_path / "out" / "merged_model.pt")
    heads = {name: tensor for name, tensor in finetuned.items() if name.startswith(HEADS)}
    assert_equal(found["model"], official(base, finetuned) | heads)
    assert found["extra_state"] == {"epoch": 9, "val_loss": 2.5}


# where a tensor cannot be written in its place
def test_tied_tensors_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    tied = {**base, "encoder.layers.1.fc1.weight": base["encoder.layers.0.fc1.weight"]}
    theirs = {**finetuned, "encoder.layers.1.fc1.weight": finetuned["encoder.layers.0.fc1.weight"]}
    ours = save(s3prl_base(HUBERT, tied), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(HUBERT, theirs), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    found = load(tmp_path / "out" / "merged_model.pt")["model_weight"]
    assert_equal(found, official(tied, theirs))
    assert found["encoder.layers.0.fc1.weight"].data_ptr() == found["encoder.layers.1.fc1.weight"].data_ptr()
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None


def test_tensors_cut_from_one_storage_are_written_in_their_slices(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    flat = torch.cat([torch.zeros(3), *(tensor.flatten() for tensor in base.values()), torch.ones(5)])
    views, position = {}, 3
    for name, tensor in base.items():
        views[name] = flat[position : position + tensor.numel()].view(tensor.shape)
        position += tensor.numel()
    ours = save(s3prl_base(HUBERT, views), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    found = load(tmp_path / "out" / "merged_model.pt")["model_weight"]
    assert_equal(found, official(base, finetuned))
    storage = found["mask_emb"].untyped_storage()
    assert bytes(storage)[:12] == bytes(12)
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None


def test_empty_tensors_are_no_hindrance(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    whole = torch.randn(3, 4)
    extra = {"head.none": whole[:0], "head.some": whole}
    ours = save(s3prl_base(HUBERT, base | extra), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned) | extra)


def odd_base(kind: str, base: Weights) -> Weights:
    name = "encoder.layers.0.fc1.weight"
    if kind == "not contiguous":
        return {**base, name: base[name].T.contiguous().T}
    storage = torch.cat([base[name].flatten(), torch.zeros(32)])
    if kind == "overlapping":
        return {**base, name: storage[:-32].view(64, 32), "encoder.layers.1.fc1.weight": storage[32:].view(64, 32)}
    return {**base, name: base[name].half()}


ODD = {
    "not contiguous": (CheckpointError, r"fc1.weight' is not contiguous.*--format safetensors"),
    "overlapping": (CheckpointError, "fc1.weight' share bytes.*--format safetensors"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_cannot_be_merged_in_its_place_is_refused_with_a_way_out(kind: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    error, message = ODD[kind]
    ours = save(s3prl_base(HUBERT, odd_base(kind, base)), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    with pytest.raises(error, match=message):
        merge(ours, theirs, tmp_path / "out", durable=False)
    assert not (tmp_path / "out").exists()
    merge(ours, theirs, tmp_path / "out", Recipe(format="safetensors"), durable=False)


def test_a_head_that_is_not_contiguous_is_no_hindrance(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    base["final_proj.weight"] = base["final_proj.weight"].T.contiguous().T
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", durable=False)
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned))


def test_another_element_type_does_not_fit_in_a_labs_file(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    with pytest.raises(UsageError, match=r"element types.*--format safetensors"):
        merge(ours, theirs, tmp_path / "out", Recipe(dtype="float16"), durable=False)
    with pytest.raises(UsageError, match="max-shard-size goes with --format safetensors"):
        merge(ours, theirs, tmp_path / "out", max_shard_size=10_000, durable=False)
    merge(ours, theirs, tmp_path / "out", Recipe(dtype="float16", format="safetensors"), durable=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


# across layouts
@pytest.mark.parametrize("kind", LABS)
def test_merged_across_layouts_is_merged_within_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """Any of the four pairs, written for transformers: the same weights file, byte for byte."""
    lab = LABS[kind]
    models = {"base": build_lab(lab), "ft": build_lab(lab)}
    models["ft"].load_state_dict(shaken(models["base"].state_dict()))
    write = wavlm if lab.family == "wavlm" else s3prl_base
    files: dict[str, dict[str, str]] = {"lab": {}, "transformers": {}}
    for name, model in models.items():
        files["lab"][name] = save(write(lab, model.state_dict()), tmp_path / f"{name}.pt")
        loaded_twin(lab, model).save_pretrained(tmp_path / name)
        files["transformers"][name] = str(tmp_path / name)
    found = {}
    for base in files:
        for finetuned in files:
            out = tmp_path / f"{base}-{finetuned}"
            recipe = Recipe(format="safetensors")
            merge(files[base]["base"], files[finetuned]["ft"], out, recipe, durable=False)
            family = FAMILIES[lab.family]
            task = "ForPreTraining" if base == "lab" and lab.family == "wav2vec2" else "Model"
            model, info = model_class(family, task).from_pretrained(out, output_loading_info=True)
            assert {key: value for key, value in info.items() if value} == {}
            found[base, finetuned] = (model if task == "Model" else model.wav2vec2).state_dict()
    first = found["lab", "lab"]
    for weights in found.values():
        assert_equal(weights, first)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "S3PRL base"])
def test_any_of_the_labs_files_merges_into_any_base(kind: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    theirs = save(FILES[kind](HUBERT, finetuned), tmp_path / "ft.ckpt")
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    loaded_twin(HUBERT, build_lab(HUBERT)).save_pretrained(tmp_path / "hf")
    merge(ours, theirs, tmp_path / "lab", durable=False)
    merge(str(tmp_path / "hf"), theirs, tmp_path / "transformers", durable=False)
    expected = official(base, finetuned)
    assert_equal(load(tmp_path / "lab" / "merged_model.pt")["model_weight"], expected)
    twin = build_lab(HUBERT)
    twin.load_state_dict(expected)
    model, info = transformers().HubertModel.from_pretrained(tmp_path / "transformers", output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    assert_equal(model.state_dict(), loaded_twin(HUBERT, twin).state_dict())


def test_a_fine_tune_of_transformers_merges_into_a_labs_file(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    twin = build_lab(HUBERT)
    twin.load_state_dict(finetuned)
    config = loaded_twin(HUBERT, twin).config
    ctc = transformers().HubertForCTC(config)
    ctc.hubert.load_state_dict(loaded_twin(HUBERT, twin).state_dict())
    ctc.save_pretrained(tmp_path / "ft")
    ours = save(fairseq_hydra(HUBERT, base), tmp_path / "base.pt")
    merge(ours, str(tmp_path / "ft"), tmp_path / "out", durable=False)
    whole = load(tmp_path / "out" / "merged_model.pt")
    assert_equal(whole["model"], official(base, finetuned))
    assert OmegaConf.to_container(whole["cfg"])["model"]["_name"] == "hubert"


def test_a_fine_tune_of_transformers_within_s3prl_merges_into_its_base(tmp_path: Path) -> None:
    """S3PRL's hf_hubert upstream saves transformers' names behind `model.`."""
    base, finetuned = pair(HUBERT)
    models = []
    for weights in (base, finetuned):
        twin = build_lab(HUBERT)
        twin.load_state_dict(weights)
        models.append(loaded_twin(HUBERT, twin))
    models[0].save_pretrained(tmp_path / "base")
    theirs = save(s3prl_finetune(HUBERT, models[1].state_dict()), tmp_path / "ft.ckpt")
    merge(str(tmp_path / "base"), theirs, tmp_path / "out", durable=False)
    found = transformers().HubertModel.from_pretrained(tmp_path / "out").state_dict()
    assert_equal(found, official(models[0].state_dict(), models[1].state_dict()))


def test_several_fine_tunes_in_several_layouts_are_averaged(tmp_path: Path) -> None:
    base, first = pair(HUBERT)
    second = shaken(base, seed=2)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = [save(s3prl_finetune(HUBERT, first), tmp_path / "a.ckpt"), save(spin(HUBERT, second), tmp_path / "b.ckpt")]
    merge(ours, theirs, tmp_path / "out", durable=False)
    found = load(tmp_path / "out" / "merged_model.pt")["model_weight"]
    mean = {name: (first[name].double() + second[name].double()) / 2 for name in base}
    for name, tensor in official({n: t.double() for n, t in base.items()}, mean).items():
        assert torch.allclose(found[name].double(), tensor, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("pattern", ["encoder.layers.*.self_attn.**", "encoder.layers.*.attention.**"])
def test_patterns_may_use_the_labs_names_or_those_of_transformers(pattern: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    plan = prepare(ours, [theirs], Recipe(rules=(parse_rule(f"{pattern}=0.5"),))).plan
    assert {t.name for t in plan.tensors if t.alpha == 0.5} == {name for name in base if ".self_attn." in name}


def test_torchaudios_wavlm_is_merged_with_its_like_only(tmp_path: Path) -> None:
    """Its query, key and value are rows of one tensor."""
    stem = "encoder.transformer.layers.0.attention."
    packed = {
        "encoder.transformer.pos_conv_embed.conv.bias": torch.randn(32),
        f"{stem}attention.in_proj_weight": torch.randn(96, 32),
        f"{stem}attention.out_proj.weight": torch.randn(32, 32),
        f"{stem}gru_rel_pos_const": torch.randn(1, 2, 1, 1),
        "encoder.transformer.layer_norm.weight": torch.randn(32),
    }
    ours, theirs = save(packed, tmp_path / "base.pth"), save(shaken(packed), tmp_path / "ft.pth")
    merge(ours, theirs, tmp_path / "out", durable=False)
    assert_equal(load(tmp_path / "out" / "merged_model.pth"), official(packed, shaken(packed)))
    lab = BASE["wavlm"]
    other = save(wavlm(lab, build_lab(lab).state_dict()), tmp_path / "lab.pt")
    for pair_of_files in ((ours, other), (other, ours)):
        with pytest.raises(MismatchError, match=r"base.pth is torchaudio's WavLM.*in_proj_weight"):
            prepare(pair_of_files[0], [pair_of_files[1]])


# for transformers
def test_a_labs_model_written_for_transformers_computes_what_the_lab_would(tmp_path: Path) -> None:
    for kind, lab in LABS.items():
        base, finetuned = pair(lab)
        write = wavlm if lab.family == "wavlm" else s3prl_base
        folder = tmp_path / kind
        folder.mkdir()
        ours, theirs = (
            save(write(lab, base), folder / "base.pt"),
            save(s3prl_finetune(lab, finetuned), folder / "ft.ckpt"),
        )
        merge(ours, theirs, folder / "out", Recipe(format="safetensors"), durable=False)
        lab_model = build_lab(lab)
        lab_model.load_state_dict(official(base, finetuned))
        model = transformers().AutoModel.from_pretrained(folder / "out").eval()
        waves = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.max(torch.abs(model(waves).last_hidden_state - lab_model(waves)[-1])) < 1e-4
        extractor = transformers().AutoFeatureExtractor.from_pretrained(folder / "out")
        assert extractor.do_normalize is (lab.family != "wavlm")
        assert extractor.sampling_rate == 16000


def test_a_ctc_fine_tune_of_fairseq_becomes_one_of_transformers(tmp_path: Path) -> None:
    lab = BASE["wav2vec2"]
    base, finetuned = pair(lab)
    whole = fairseq_ctc(lab, finetuned)
    ours, theirs = save(s3prl_base(lab, base), tmp_path / "base.pt"), save(whole, tmp_path / "ft.pt")
    merge(ours, theirs, tmp_path / "out", Recipe(keep_head=True, format="safetensors"), durable=False)
    model, info = transformers().Wav2Vec2ForCTC.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    assert torch.equal(model.lm_head.weight, whole["model"]["w2v_encoder.proj.weight"])
    merged = official(base, finetuned)
    assert torch.equal(
        model.wav2vec2.encoder.layers[1].feed_forward.output_dense.bias, merged["encoder.layers.1.fc2.bias"]
    )


def test_the_heads_of_wav2vec2_go_along_and_those_of_hubert_do_not(tmp_path: Path) -> None:
    for family, kept in (("wav2vec2", True), ("hubert", False)):
        lab = BASE[family]
        base, finetuned = pair(lab)
        ours = save(s3prl_base(lab, base), tmp_path / f"{family}.pt")
        theirs = save(s3prl_finetune(lab, finetuned), tmp_path / f"{family}.ckpt")
        result = merge(ours, theirs, tmp_path / family, Recipe(format="safetensors"), durable=False)
        found = load_file(tmp_path / family / "model.safetensors")
        assert ("project_hid.weight" in found) is kept
        assert ("wav2vec2.encoder.layer_norm.weight" in found) is kept
        assert {entry["tensor"] for entry in result.manifest["left_out"]} == (
            set() if kept else {"label_embs_concat", "final_proj.weight", "final_proj.bias"}
        )
        if kept:
            assert torch.equal(found["quantizer.codevectors"], base["quantizer.vars"])


def test_of_teacher_and_student_the_one_that_was_fine_tuned_is_written(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    student = build_lab(Lab("hubert", layers=1)).state_dict()
    both = prefixed("student.", student) | prefixed("teacher.", base)
    whole = {"model": both, "cfg": {"model": {"_name": "hubert", **HUBERT.settings}, "task": TASK}}
    ours, theirs = save(whole, tmp_path / "base.pt"), save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "out", Recipe(format="safetensors"), durable=False)
    model = transformers().HubertModel.from_pretrained(tmp_path / "out")
    twin = build_lab(HUBERT)
    twin.load_state_dict(official(base, finetuned))
    assert_equal(model.state_dict(), loaded_twin(HUBERT, twin).state_dict())
    merge(ours, theirs, tmp_path / "lab", durable=False)
    found = load(tmp_path / "lab" / "merged_model.pt")["model"]
    assert_equal(found, prefixed("student.", student) | prefixed("teacher.", official(base, finetuned)))


# DeCoAR 2.0
def test_decoar2_is_merged_part_by_part(tmp_path: Path) -> None:
    lab = BASE["decoar2"]
    base, finetuned = pair(lab)
    whole = decoar2(lab, base)
    ours, theirs = save(whole, tmp_path / "base.pt"), save(s3prl_finetune(lab, finetuned), tmp_path / "ft.ckpt")
    rules = {"projection": 0.0, "pos_conv": 0.1, "0": 0.2, "1": 0.4, "final_norm": 1.0}
    recipe = Recipe(rules=tuple(parse_rule(f"{part}={alpha}") for part, alpha in rules.items()))
    merge(ours, theirs, tmp_path / "out", recipe, durable=False)
    found = load(tmp_path / "out" / "merged_model.pt")["model"]
    starts = {
        "post_extract_proj": "projection", "encoder.pos_conv": "pos_conv", "encoder.layers.0": "0",
        "encoder.layers.1": "1", "encoder.layer_norm": "final_norm",
    }  # fmt: skip
    for name, tensor in base.items():
        alpha = rules[next(part for start, part in starts.items() if name.startswith(start))]
        exact = tensor.double() + alpha * (finetuned[name].double() - tensor.double())
        assert torch.allclose(found[name].double(), exact, rtol=1e-6, atol=1e-7), name
    assert torch.equal(found["quantizer.vars"], whole["model"]["quantizer.vars"])
    with pytest.raises(UsageError, match=r"no config.json can be derived.*leave out --format"):
        merge(ours, theirs, tmp_path / "tf", Recipe(format="safetensors"), durable=False)
    merge(ours, theirs, tmp_path / "s3prl", Recipe(format="s3prl"), durable=False)


# formats
ALLOWED = {
    "S3PRL base": {"auto", "safetensors", "s3prl"},
    "S3PRL fine-tune": {"auto", "s3prl"},
    "fairseq with omegaconf": {"auto", "safetensors", "fairseq"},
    "fairseq with argparse": {"auto", "safetensors", "fairseq"},
    "fairseq CTC": {"auto", "safetensors", "fairseq"},
    "WavLM": {"auto", "safetensors", "s3prl"},
    "SPIN": {"auto"},
    "plain": {"auto"},
}
"""S3PRL's fine-tunes, SPIN's files and bare state dicts have no configuration: transformers cannot be told enough."""


@pytest.mark.parametrize("asked", ["auto", "safetensors", "s3prl", "fairseq"])
@pytest.mark.parametrize("kind", ALLOWED)
def test_a_base_is_written_in_the_formats_that_its_file_allows(kind: str, asked: str, tmp_path: Path, run: Run) -> None:
    base, finetuned = pair(HUBERT)
    save(FILES[kind](HUBERT, base), tmp_path / "base.pt")
    save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    ran = run("base.pt", "ft.ckpt", "--format", asked, "-o", "out", "--no-fsync")
    if asked in ALLOWED[kind]:
        assert (ran.code, ran.err) == (0, "")
        expected = "model.safetensors" if asked == "safetensors" else "merged_model.pt"
        assert (tmp_path / "out" / expected).is_file()
        assert (tmp_path / "out" / "config.json").is_file() == (asked == "safetensors")
    else:
        assert (ran.code, ran.out) == (2, "")
        assert "base.pt" in ran.err
        assert not (tmp_path / "out").exists()


def test_a_model_of_transformers_is_not_written_for_the_labs_and_the_way_out_is_told(run: Run, tmp_path: Path) -> None:
    model = build_lab(HUBERT)
    loaded_twin(HUBERT, model).save_pretrained(tmp_path / "base")
    save(s3prl_finetune(HUBERT, shaken(model.state_dict())), tmp_path / "ft.ckpt")
    ran = run("./base", "ft.ckpt", "--format", "s3prl", "-o", "out")
    assert (ran.code, "s3prl/converted_ckpts" in ran.err, "hf_hubert_custom" in ran.err) == (2, True, True)
    ran = run("./base", "ft.ckpt", "--format", "fairseq", "-o", "out")
    assert (ran.code, "a base that fairseq wrote" in ran.err) == (2, True)
    ran = run("./base", "ft.ckpt", "--format", "nonsense", "-o", "out")
    assert (ran.code, "auto, safetensors, s3prl, fairseq" in ran.err) == (2, True)


def test_the_format_is_a_part_of_the_recipe(tmp_path: Path, run: Run) -> None:
    base, finetuned = pair(HUBERT)
    save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    assert run("base.pt", "ft.ckpt", "--format", "safetensors", "-o", "first", "--no-fsync").code == 0
    assert run("base.pt", "ft.ckpt", "--recipe", "first/speechft_merge.json", "-o", "second", "--no-fsync").code == 0
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()


def test_a_dry_run_tells_what_a_labs_file_costs(tmp_path: Path, run: Run) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    size = (tmp_path / "base.pt").stat().st_size
    plan = run(ours, theirs, "--dry-run", "--json").json
    assert plan["files"] == [{"file": "merged_model.pt", "size": size}]
    assert plan["companions"] == []
    mixed = sum(t.numel() * 4 for name, t in finetuned.items() if not name.startswith(HEADS))
    assert plan["read_bytes"] == size + mixed
    assert {reason for row in plan["layers"] for reason in row["reasons"]} == {"copied: the base's head"}


# the official script's defects, see the README
def spoilt(defect: str, finetuned: Weights) -> Weights:
    name = "encoder.layers.0.fc1.weight"
    match defect:
        case "a key is missing":
            return {n: t for n, t in finetuned.items() if n != name}
        case "an extra key":
            return {**finetuned, "encoder.layers.0.adapter.weight": torch.ones(4, 4)}
        case "a shape that would broadcast":
            return {**finetuned, name: finetuned[name][:1]}
        case "not a number":
            finetuned[name][3, 5] = float("nan")
            return finetuned
        case "parametrized weight norm":
            stem = "encoder.pos_conv.0."
            renamed = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
            names = {stem + old: stem + new for old, new in renamed.items()}
            return {names.get(n, n): t for n, t in finetuned.items()}
    raise AssertionError(defect)


REFUSED = {
    "a shape that would broadcast": r"1 tensors have other shapes.*fc1.weight: \[64, 32\], in the fine-tune \[1, 32\]",
    "not a number": r"fc1.weight' holds nan \(element 101\)",
}
ANSWERED = {
    "a key is missing": ({"interpolated": 46, "copied": 4, "left out": 0}, "not in the fine-tune"),
    "an extra key": ({"interpolated": 47, "copied": 3, "left out": 1}, "not in the base"),
    "parametrized weight norm": ({"interpolated": 47, "copied": 3, "left out": 0}, ""),
}


@pytest.mark.parametrize("defect", REFUSED)
def test_what_the_official_script_lets_pass_is_refused(defect: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, spoilt(defect, finetuned)), tmp_path / "ft.ckpt")
    with pytest.raises(MismatchError, match=REFUSED[defect]):
        merge(ours, theirs, tmp_path / "out", durable=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("defect", ANSWERED)
def test_what_the_official_script_breaks_at_is_answered(defect: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    counts, reason = ANSWERED[defect]
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, spoilt(defect, dict(finetuned))), tmp_path / "ft.ckpt")
    result = merge(ours, theirs, tmp_path / "out", durable=False)
    assert counts.items() <= result.manifest["counts"].items()
    told = {*result.manifest["not_interpolated"].values(), *(e["reason"] for e in result.manifest["left_out"])}
    assert told == {"the base's head", *([reason] if reason else [])}
    expected = official(base, finetuned)
    if defect == "a key is missing":
        expected["encoder.layers.0.fc1.weight"] = base["encoder.layers.0.fc1.weight"]
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], expected)


def test_an_unknown_file_and_an_unknown_base_have_exit_codes(tmp_path: Path, run: Run) -> None:
    base, finetuned = pair(HUBERT)
    save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    save({"step": 3, "notes": "no model"}, tmp_path / "unknown.pt")
    for words, code, told in (
        (("base.pt", "unknown.pt"), 65, "holds no state dict"),
        (("./hubert", "ft.ckpt"), 66, "hubert"),
    ):
        ran = run(*words, "-o", "out")
        assert (ran.code, told in ran.err, "Traceback" in ran.err) == (code, True, False)


def test_a_frozen_encoder_is_told_and_not_merged(tmp_path: Path, run: Run) -> None:
    base, finetuned = pair(HUBERT)
    whole = s3prl_finetune(HUBERT, finetuned)
    del whole["Upstream"]
    save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    save(whole, tmp_path / "ft.ckpt")
    ran = run("base.pt", "ft.ckpt", "-o", "out")
    assert (ran.code, "encoder was frozen" in ran.err) == (65, True)
    assert run("inspect", "ft.ckpt").code == 65


def test_a_distilled_student_is_refused_as_a_fine_tune(tmp_path: Path) -> None:
    base, _ = pair(Lab("hubert", layers=6))
    student, _ = pair(Lab("hubert", layers=1))
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, student), tmp_path / "ft.ckpt")
    with pytest.raises(MismatchError, match=r"not a fine-tune|parameters"):
        prepare(ours, [theirs])


# inspect
@pytest.mark.parametrize(
    ("kind", "lab", "layout", "prefix"),
    [
        ("S3PRL base", "S3PRL base", "fairseq", ""),
        ("S3PRL fine-tune", "S3PRL fine-tune", "fairseq", "model."),
        ("fairseq CTC", "fairseq", "fairseq", "w2v_encoder.w2v_model."),
        ("SPIN", "Lightning", "fairseq", "encoder.model."),
        ("plain", None, "fairseq", ""),
    ],
)
def test_inspect_tells_the_labs_files_apart(
    kind: str, lab: str | None, layout: str, prefix: str, tmp_path: Path, run: Run
) -> None:
    weights = build_lab(HUBERT).state_dict()
    save(FILES[kind](HUBERT, weights), tmp_path / "model.pt")
    document = run("inspect", "model.pt", "--json").json
    assert (document["lab"], document["layout"], document["merge"]["prefix"]) == (lab, layout, prefix)
    assert (document["family"], document["model_type"]) == ("HuBERT, 2 layers of width 32", "hubert")
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(HEADS)}
    assert document["merge"]["tensors"] == len(encoder)
    assert document["merge"]["parameters"] == sum(tensor.numel() for tensor in encoder.values())
    heads = {prefix + name for name in weights if name.startswith(HEADS)}
    if kind not in ("fairseq CTC", "SPIN"):
        assert set(document["merge"]["heads"]) == heads
    assert document["tensors"][prefix + "encoder.layers.1.fc2.bias"]["transformers"] == (
        "encoder.layers.1.feed_forward.output_dense.bias"
    )
    text = run("inspect", "model.pt", "-v")
    assert text.code == 0
    for told in ("HuBERT, 2 layers of width 32", f"{layout}'s names", "float32", f"in {len(encoder)} tensors"):
        assert told in text.out
    row = next(line for line in text.lines if line.startswith(prefix + "encoder.pos_conv.0.weight_v"))
    assert row.split()[-1] == "pos_conv"


def test_inspect_of_a_pair_matches_across_layouts(tmp_path: Path, run: Run) -> None:
    _, finetuned = pair(HUBERT)
    loaded_twin(HUBERT, build_lab(HUBERT)).save_pretrained(tmp_path / "base")
    save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    document = run("inspect", "./base", "ft.ckpt", "--json").json
    assert document["coverage"] == 1
    assert document["tensors"]["encoder.layers.1.attention.k_proj.weight"]["finetuned"] == [
        "model.encoder.layers.1.self_attn.k_proj.weight"
    ]


# hostile
def test_no_damaged_file_of_a_lab_ends_in_a_traceback(tmp_path: Path) -> None:
    base, finetuned = pair(Lab("hubert", layers=1))
    content = (tmp_path / "good.pt", tmp_path / "bad.pt")
    save(s3prl_base(HUBERT, base), content[0])
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    good = content[0].read_bytes()
    chance = random.Random(0)
    outcomes = set()
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            bad[chance.choice([chance.randrange(3000), len(bad) - 1 - chance.randrange(9000)])] ^= (
                1 << chance.randrange(8)
            )
        content[1].write_bytes(bad)
        try:
            prepare(str(content[1]), [theirs]).close()
            outcomes.add("read")
        except ValueError as error:
            outcomes.add(type(error).__name__)
    assert outcomes <= {"read", "CheckpointError", "MismatchError", "UsageError"}
    assert "CheckpointError" in outcomes


def test_plain_state_dicts_are_written_back_as_such(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours, theirs = save(plain(HUBERT, base), tmp_path / "base.pth"), save(plain(HUBERT, finetuned), tmp_path / "ft.pth")
    merge(ours, theirs, tmp_path / "out", durable=False)
    assert_equal(load(tmp_path / "out" / "merged_model.pth"), official(base, finetuned))
