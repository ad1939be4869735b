"""What a merge of the labs' checkpoints is written as: for transformers, for S3PRL, for fairseq; and `inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from lab_files import (
    FILES,
    TASK,
    fairseq_ctc,
    prefixed,
    s3prl_base,
    s3prl_finetune,
    wavlm,
)
from lab_models import BASE, LABS, Lab, build_lab, shaken
from lab_pairs import HEADS, HUBERT, assert_equal, load, loaded_twin, official, pair, save
from models import build, fine_tune, transformers
from options import UNSYNCED
from safetensors.torch import load_file

from speechft_merge import Recipe, merge

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run


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
    ran = run("base.pt", "ft.ckpt", "--format", asked, "-o", "out", "--no-fsync", "--allow-unrelated")
    if asked in ALLOWED[kind]:
        assert (ran.code, "error" in ran.err) == (0, False)
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
        merge(ours, theirs, folder / "out", Recipe(format="safetensors"), options=UNSYNCED)
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
    merge(ours, theirs, tmp_path / "out", Recipe(keep_head=True, format="safetensors"), options=UNSYNCED)
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
        result = merge(ours, theirs, tmp_path / family, Recipe(format="safetensors"), options=UNSYNCED)
        found = load_file(tmp_path / family / "model.safetensors")
        assert ("project_hid.weight" in found) is kept
        assert ("wav2vec2.encoder.layer_norm.weight" in found) is kept
        assert {entry.tensor for entry in result.manifest.left_out} == (
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
    merge(ours, theirs, tmp_path / "out", Recipe(format="safetensors"), options=UNSYNCED)
    model = transformers().HubertModel.from_pretrained(tmp_path / "out")
    twin = build_lab(HUBERT)
    twin.load_state_dict(official(base, finetuned))
    assert_equal(model.state_dict(), loaded_twin(HUBERT, twin).state_dict())
    merge(ours, theirs, tmp_path / "lab", options=UNSYNCED)
    found = load(tmp_path / "lab" / "merged_model.pt")["model"]
    assert_equal(found, prefixed("student.", student) | prefixed("teacher.", official(base, finetuned)))


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
    for told in ("HuBERT, 2 layers of width 32", f"names of {layout}", "float32", f"in {len(encoder)} tensors"):
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


@pytest.mark.parametrize("wrapped", ["names", "dictionary"])
def test_a_pickle_of_another_form_beside_a_config_is_written_back_as_it_was(wrapped: str, tmp_path: Path) -> None:
    model = build("Hubert", seed=1)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    plain = model.state_dict()
    wrapping = {"names": prefixed("model.", plain), "dictionary": {"epoch": 3, "model": plain}}[wrapped]
    torch.save(wrapping, tmp_path / "base/last.ckpt")
    fine_tune(model, "Hubert", "ForCTC").save_pretrained(tmp_path / "tuned")
    merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", options=UNSYNCED)
    found = torch.load(tmp_path / "out/merged_model.ckpt", weights_only=True)
    assert found.keys() == wrapping.keys()

    recipe = Recipe(format="safetensors")
    merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "folder", recipe, options=UNSYNCED)
    _, info = transformers().HubertModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
