"""Merging the labs' checkpoints in any combination of layouts, and what the paper's own script stumbles over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from lab_files import (
    FILES,
    Weights,
    decoar2,
    fairseq_hydra,
    s3prl_base,
    s3prl_finetune,
    spin,
    wavlm,
)
from lab_models import BASE, LABS, Lab, build_lab, shaken
from lab_pairs import FAMILIES, HUBERT, assert_equal, load, loaded_twin, official, pair, save
from models import model_class, transformers
from omegaconf import OmegaConf
from options import UNSYNCED
from safetensors.torch import save_file

from speechft_merge import MergeOptions, Recipe, merge, open_merge
from speechft_merge.errors import MismatchError, UsageError
from speechft_merge.recipe.rules import parse_rule

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run


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
            merge(files[base]["base"], files[finetuned]["ft"], out, recipe, options=UNSYNCED)
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
    merge(ours, theirs, tmp_path / "lab", options=UNSYNCED)
    merge(str(tmp_path / "hf"), theirs, tmp_path / "transformers", options=UNSYNCED)
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
    merge(ours, str(tmp_path / "ft"), tmp_path / "out", options=UNSYNCED)
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
    merge(str(tmp_path / "base"), theirs, tmp_path / "out", options=UNSYNCED)
    found = transformers().HubertModel.from_pretrained(tmp_path / "out").state_dict()
    assert_equal(found, official(models[0].state_dict(), models[1].state_dict()))


def test_several_fine_tunes_in_several_layouts_are_averaged(tmp_path: Path) -> None:
    base, first = pair(HUBERT)
    second = shaken(base, seed=2)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = [save(s3prl_finetune(HUBERT, first), tmp_path / "a.ckpt"), save(spin(HUBERT, second), tmp_path / "b.ckpt")]
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    found = load(tmp_path / "out" / "merged_model.pt")["model_weight"]
    mean = {name: (first[name].double() + second[name].double()) / 2 for name in base}
    for name, tensor in official({n: t.double() for n, t in base.items()}, mean).items():
        assert torch.allclose(found[name].double(), tensor, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("pattern", ["encoder.layers.*.self_attn.**", "encoder.layers.*.attention.**"])
def test_patterns_may_use_the_labs_names_or_those_of_transformers(pattern: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, finetuned), tmp_path / "ft.ckpt")
    with open_merge(ours, [theirs], Recipe(layer_alpha=(parse_rule(f"{pattern}=0.5"),))) as opened:
        plan = opened.plan
    assert {t.name for t in plan.tensors if t.alpha == 0.5} == {name for name in base if ".self_attn." in name}


def packed_wavlm() -> Weights:
    stem = "encoder.transformer.layers.0.attention."
    torch.manual_seed(0)
    return {
        "encoder.transformer.pos_conv_embed.conv.bias": torch.randn(32),
        f"{stem}attention.in_proj_weight": torch.randn(96, 32),
        f"{stem}attention.in_proj_bias": torch.randn(96),
        f"{stem}attention.out_proj.weight": torch.randn(32, 32),
        f"{stem}gru_rel_pos_const": torch.randn(1, 2, 1, 1),
        "encoder.transformer.layer_norm.weight": torch.randn(32),
    }


def test_two_of_torchaudios_wavlm_are_merged_as_they_are(tmp_path: Path) -> None:
    """Its query, key and value are rows of one tensor."""
    base = packed_wavlm()
    ours, theirs = save(base, tmp_path / "base.pth"), save(shaken(base), tmp_path / "ft.pth")
    merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    assert_equal(load(tmp_path / "out" / "merged_model.pth"), official(base, shaken(base)))


@pytest.mark.parametrize("keep_head", [False, True])
def test_torchaudios_wavlm_in_a_container_that_is_not_copied_cannot_be_the_owner(
    keep_head: bool, tmp_path: Path
) -> None:
    lab = BASE["wavlm"]
    other = save(wavlm(lab, build_lab(lab).state_dict()), tmp_path / "lab.pt")
    save_file(packed_wavlm(), tmp_path / "own.safetensors")
    models = [str(tmp_path / "own.safetensors"), other]
    base, tuned = reversed(models) if keep_head else models
    with pytest.raises(MismatchError, match=r"own.safetensors is torchaudio's WavLM.*in_proj_weight.*be the fine-tune"):
        open_merge(base, [tuned], Recipe(keep_head=keep_head))


# DeCoAR 2.0
def test_decoar2_is_merged_part_by_part(tmp_path: Path) -> None:
    lab = BASE["decoar2"]
    base, finetuned = pair(lab)
    whole = decoar2(lab, base)
    ours, theirs = save(whole, tmp_path / "base.pt"), save(s3prl_finetune(lab, finetuned), tmp_path / "ft.ckpt")
    rules = {"projection": 0.0, "pos_conv": 0.1, "0": 0.2, "1": 0.4, "final_norm": 1.0}
    recipe = Recipe(layer_alpha=tuple(parse_rule(f"{part}={alpha}") for part, alpha in rules.items()))
    merge(ours, theirs, tmp_path / "out", recipe, options=UNSYNCED)
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
    with pytest.raises(UsageError, match=r"has no class for DeCoAR 2\.0.*leave out --format"):
        merge(ours, theirs, tmp_path / "tf", Recipe(format="safetensors"), options=UNSYNCED)
    merge(ours, theirs, tmp_path / "s3prl", Recipe(format="s3prl"), options=UNSYNCED)


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
    "a shape that would broadcast": r"1 tensor has another shape.*fc1.weight: \[64, 32\], in the fine-tune \[1, 32\]",
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
        merge(ours, theirs, tmp_path / "out", options=UNSYNCED)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("defect", ANSWERED)
def test_what_the_official_script_breaks_at_is_answered(defect: str, tmp_path: Path) -> None:
    base, finetuned = pair(HUBERT)
    counts, reason = ANSWERED[defect]
    ours = save(s3prl_base(HUBERT, base), tmp_path / "base.pt")
    theirs = save(s3prl_finetune(HUBERT, spoilt(defect, dict(finetuned))), tmp_path / "ft.ckpt")
    if reason:
        with pytest.raises(MismatchError, match="--allow-partial"):
            merge(ours, theirs, tmp_path / "out")
    result = merge(ours, theirs, tmp_path / "out", options=MergeOptions(fsync=False, allow_partial=True))
    assert counts.items() <= result.manifest.counts.items()
    told = {*result.manifest.not_interpolated.values(), *(e.reason for e in result.manifest.left_out)}
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
    with pytest.raises(MismatchError, match=r"has 6 layers in the encoder, .* has 1"):
        open_merge(ours, [theirs])
