"""A lab's checkpoint written back: its own file with the merged numbers in place, and all else as it was."""

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
    fairseq_hydra,
    plain,
    prefixed,
    s3prl_base,
    s3prl_finetune,
)
from lab_models import BASE, Lab, build_lab
from lab_pairs import HEADS, HUBERT, assert_equal, load, loaded_twin, merged_file, official, pair, save
from options import UNSYNCED

from speechft_merge import MergeOptions, Recipe, merge, open_merge
from speechft_merge.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPLACE = MergeOptions(fsync=False, overwrite=True)


# a lab's file, written back
@pytest.mark.parametrize("legacy", [False, True])
def test_two_files_of_s3prl_give_what_the_official_script_gives(legacy: bool, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "hubert_base.pt", legacy)
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "dev-best.ckpt")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
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
    options = MergeOptions(fsync=False, allow_unrelated=kind == "fairseq CTC")  # it has a head that the fine-tune lacks
    merge(ours, save(s3prl_finetune(lab, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", options=options)
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
    options = MergeOptions(fsync=False, allow_unrelated=kind == "fairseq CTC")  # it has a head that the fine-tune lacks
    merge(ours, save(s3prl_finetune(lab, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", options=options)
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
    merge(str(tmp_path / "base.pt"), theirs, tmp_path / "out", options=UNSYNCED)
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("S3PRL base", ".pt"), ("SPIN", ".ckpt"), ("plain", ".pth"), ("WavLM", "")]
)
def test_the_output_is_called_merged_model_with_the_bases_suffix(kind: str, suffix: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(FILES[kind](HUBERT, base), tmp_path / f"base{suffix}")
    result = merge(
        ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", options=UNSYNCED
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"merged_model{suffix or '.pt'}", "README.md", "speechft_merge.json",
    }  # fmt: skip
    assert [entry.file for entry in result.manifest.outputs] == [f"merged_model{suffix or '.pt'}"]


def test_the_card_says_what_kind_of_file_the_weights_are(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "hubert_base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "dev-best.ckpt")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    merge(ours, theirs, tmp_path / "tf", Recipe(format="safetensors"), options=UNSYNCED)
    sentence = "`merged_model.pt` is `hubert_base.pt` with merged weights"
    card, other = ((tmp_path / folder / "README.md").read_text() for folder in ("out", "tf"))
    assert (sentence in card, "library_name: transformers" in card) == (True, False)
    assert ("with merged weights" in other, "library_name: transformers" in other) == (False, True)


def test_a_merge_can_be_the_base_of_the_next(tmp_path: Path) -> None:
    """Sequential Speech-FT: each output is the next base, as a directory."""
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "first", options=UNSYNCED)
    merge(str(tmp_path / "first"), theirs, tmp_path / "second", options=UNSYNCED)
    twice = official(official(base, finetuned), finetuned)
    assert_equal(load(tmp_path / "second" / "merged_model.pt")["model_weight"], twice)


def test_a_finished_output_is_known_again_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    assert merge(ours, theirs, tmp_path / "out", options=UNSYNCED).already_done
    path = tmp_path / "out" / "merged_model.pt"
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    assert not merge(ours, theirs, tmp_path / "out", options=REPLACE).already_done
    assert path.read_bytes() == whole


@pytest.mark.parametrize("legacy", [False, True])
def test_another_configuration_beside_equal_weights_is_another_merge(legacy: bool, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    whole = s3prl_base(HUBERT, base)
    ours = save(whole, tmp_path / "base.pt", legacy)
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    whole["task_cfg"]["normalize"] = False
    save(whole, tmp_path / "base.pt", legacy)
    assert not merge(ours, theirs, tmp_path / "out", options=REPLACE).already_done
    assert load(tmp_path / "out" / "merged_model.pt")["task_cfg"]["normalize"] is False


@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_bytes_whatever_the_number_of_workers(workers: int, tmp_path: Path) -> None:
    lab = Lab("hubert", width=256, inner=2048, conv_pos_groups=2)  # tensors of several chunks
    base, finetuned = pair(lab)
    ours = save(s3prl_base(lab, base), tmp_path / "base.pt")
    merge(
        ours,
        save(s3prl_finetune(lab, finetuned), tmp_path / "ft"),
        tmp_path / "out",
        options=MergeOptions(workers=workers, fsync=False),
    )
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned))
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None


def test_with_its_head_a_fine_tune_of_s3prl_is_written_as_s3prl_writes_it(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    whole = s3prl_finetune(HUBERT, finetuned)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    merge(ours, save(whole, tmp_path / "ft.ckpt"), tmp_path / "out", Recipe(keep_head=True), options=UNSYNCED)
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
    merge(str(tmp_path / "base"), theirs, tmp_path / "out", recipe, options=UNSYNCED)
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
    merge(ours, save(s3prl_finetune(HUBERT, theirs), tmp_path / "ft.ckpt"), tmp_path / "out", options=UNSYNCED)
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
    merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", options=UNSYNCED)
    found = load(tmp_path / "out" / "merged_model.pt")["model_weight"]
    assert_equal(found, official(base, finetuned))
    storage = found["mask_emb"].untyped_storage()
    assert bytes(storage)[:12] == bytes(12)
    with zipfile.ZipFile(tmp_path / "out" / "merged_model.pt") as archive:
        assert archive.testzip() is None


def test_empty_tensors_are_no_hindrance(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    whole = torch.randn(3, 4)
    extra = {"spare.none": whole[:0], "spare.some": whole}
    ours = save(s3prl_base(HUBERT, base | extra), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", options=UNSYNCED)
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned) | extra)


def odd_base(kind: str, base: Weights) -> Weights:
    name = "encoder.layers.0.fc1.weight"
    if kind == "a part of a larger one":
        return {**base, name: torch.cat([base[name], base[name]], dim=1)[:, : base[name].shape[1]]}
    storage = torch.cat([base[name].flatten(), torch.zeros(32)])
    if kind == "overlapping":
        return {**base, name: storage[:-32].view(64, 32), "encoder.layers.1.fc1.weight": storage[32:].view(64, 32)}
    return {**base, name: base[name].half()}


ODD = {
    "a part of a larger one": (CheckpointError, r"fc1.weight' is a numpy array, or a part of a.*--format safetensors"),
    "overlapping": (CheckpointError, "fc1.weight' share bytes.*--format safetensors"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_cannot_be_merged_in_its_place_is_refused_with_a_way_out(kind: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    error, message = ODD[kind]
    ours = save(s3prl_base(HUBERT, odd_base(kind, base)), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    with pytest.raises(error, match=message):
        merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    assert not (tmp_path / "out").exists()
    merge(ours, theirs, tmp_path / "out", Recipe(format="safetensors"), options=UNSYNCED)


@pytest.mark.parametrize("theirs", ["transposed too", "in order", "in another order"])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_a_transposed_tensor_is_merged_as_its_file_holds_it(theirs: str, alpha: float, tmp_path: Path) -> None:
    """ESPnet's filter bank, an attention's kernel (q, k, v by heads)."""
    base, finetuned = pair(HUBERT)
    cubic = "feature_extractor.conv_layers.1.0.weight"
    for weights in [base] + [finetuned] * (theirs != "in order"):
        flip = (1, 0, 2) if theirs == "in another order" and weights is finetuned else (2, 0, 1)
        back = [flip.index(axis) for axis in range(3)]
        weights[cubic] = weights[cubic].permute(flip).contiguous().permute(back)
        matrix = "encoder.layers.0.fc1.weight"
        weights[matrix] = weights[matrix].T.contiguous().T
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    tuned = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    merge(ours, tuned, tmp_path / "out", Recipe(alpha=alpha), options=UNSYNCED)
    found = load(tmp_path / "out" / "merged_model.pt")["model_weight"]
    assert found[cubic].stride() == base[cubic].stride()
    assert not found[cubic].is_contiguous()
    if alpha == 0.25:
        assert_equal(found, official(base, finetuned))
    else:
        assert torch.equal(found[cubic], finetuned[cubic])


def test_a_head_that_is_not_contiguous_is_no_hindrance(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    base["final_proj.weight"] = base["final_proj.weight"].T.contiguous().T
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    merge(ours, save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt"), tmp_path / "out", options=UNSYNCED)
    assert_equal(load(tmp_path / "out" / "merged_model.pt")["model_weight"], official(base, finetuned))


def test_another_element_type_does_not_fit_in_a_labs_file(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    with pytest.raises(UsageError, match=r"element types.*--format safetensors"):
        merge(ours, theirs, tmp_path / "out", Recipe(dtype="float16"), options=UNSYNCED)
    with pytest.raises(UsageError, match="omit --max-shard-size or pass --format safetensors"):
        merge(ours, theirs, tmp_path / "out", options=MergeOptions(max_shard_size=10_000))
    merge(ours, theirs, tmp_path / "out", Recipe(dtype="float16", format="safetensors"), options=UNSYNCED)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


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
            open_merge(str(content[1]), [theirs]).close()
            outcomes.add("read")
        except ValueError as error:
            outcomes.add(type(error).__name__)
    assert outcomes <= {"read", "CheckpointError", "MismatchError", "UsageError"}
    assert "CheckpointError" in outcomes


def test_plain_state_dicts_are_written_back_as_such(tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours, theirs = save(plain(HUBERT, base), tmp_path / "base.pth"), save(plain(HUBERT, finetuned), tmp_path / "ft.pth")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    assert_equal(load(tmp_path / "out" / "merged_model.pth"), official(base, finetuned))
