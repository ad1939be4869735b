"""torchaudio's importers on merged models of transformers and fairseq, and its own models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64 import Tensors, differences, interpolate, moved, rounded
from lab_files import fairseq_container
from loaders import merged, toolkit, waves
from models import build, fine_tune, model_class
from options import UNSYNCED
from s3prl_models import LABS, build_s3prl

from speechft_merge import Recipe, merge
from speechft_merge.plan.findings import Level

if TYPE_CHECKING:
    from pathlib import Path

    from lab_models import Lab

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2), (16, 2, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 64,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
}
MASKING = {
    "mask_prob": 0.8,
    "mask_selection": "static",
    "mask_other": 0.0,
    "mask_length": 10,
    "no_mask_overlap": False,
    "mask_min_space": 1,
    "mask_channel_prob": 0.0,
    "mask_channel_selection": "static",
    "mask_channel_other": 0.0,
    "mask_channel_length": 10,
    "no_mask_channel_overlap": False,
    "mask_channel_min_space": 1,
    "skip_masked": False,
    "skip_nomask": False,
}


def features(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(waves())[0]
    return found


def imported(model: Any) -> torch.Tensor:
    """What torchaudio computes with a model of transformers."""
    return features(toolkit("torchaudio.models.wav2vec2.utils").import_huggingface_model(model))


@pytest.mark.parametrize(
    ("family", "kind"), [("Hubert", "Model"), ("Wav2Vec2", "Model"), ("Wav2Vec2", "ForCTC"), ("WavLM", "Model")]
)
def test_torchaudio_imports_a_merged_folder(family: str, kind: str, tmp_path: Path) -> None:
    base = build(family)
    tuned = fine_tune(base, family, kind)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    recipe = Recipe(keep_head=kind != "Model")
    merge(str(tmp_path / "base"), str(tmp_path / "tuned"), tmp_path / "out", recipe, options=UNSYNCED)
    found = model_class(family, kind).from_pretrained(tmp_path / "out")
    prefix = "" if kind == "Model" else f"{tuned.base_model_prefix}."
    theirs = {name.removeprefix(prefix): tensor for name, tensor in tuned.state_dict().items()}
    wanted = interpolate(base.state_dict(), theirs)
    tuned.load_state_dict({prefix + name: tensor.float() for name, tensor in wanted.items()}, strict=kind == "Model")
    torch.testing.assert_close(imported(found), imported(tuned), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lab", [lab for lab in LABS if lab.family != "wavlm"], ids=lambda lab: lab.family)
def test_torchaudio_imports_a_merged_file_of_fairseq(lab: Lab, tmp_path: Path) -> None:
    """S3PRL's port stands for fairseq's classes: they have their names, and torchaudio goes by these."""
    model = build_s3prl(lab).eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = moved(base)
    for name, weights in (("base.pt", base), ("tuned.pt", tuned)):
        torch.save(fairseq_container(lab, weights), tmp_path / name)
    file = merged(tmp_path / "base.pt", tmp_path / "tuned.pt", tmp_path / "out")
    importer = toolkit("torchaudio.models.wav2vec2.utils").import_fairseq_model
    outputs = []
    for weights in (torch.load(file, weights_only=False)["model"], rounded(interpolate(base, tuned), base)):
        model.load_state_dict(weights)
        outputs.append(features(importer(model)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [None, 12], ids=["encoder", "with a CTC layer"])
@pytest.mark.parametrize("kind", ["wav2vec2_model", "wavlm_model"])
def test_a_file_of_torchaudio_is_written_back_as_one(kind: str, head: int | None, tmp_path: Path) -> None:
    sizes = SIZES | ({"encoder_num_buckets": 32, "encoder_max_distance": 80} if kind == "wavlm_model" else {})
    make = getattr(toolkit("torchaudio.models"), kind)
    torch.manual_seed(0)
    base = make(**sizes, aux_num_out=head)
    tuned = make(**sizes, aux_num_out=head)
    tuned.load_state_dict(moved(base.state_dict()))
    for name, model in (("base.pt", base), ("tuned.pt", tuned)):
        torch.save(model.state_dict(), tmp_path / name)
    file = merged(tmp_path / "base.pt", tmp_path / "tuned.pt", tmp_path / "out")
    body = {name: tensor for name, tensor in tuned.state_dict().items() if not name.startswith("aux.")}
    wanted = interpolate(base.state_dict(), body)
    found = make(**sizes, aux_num_out=head)
    found.load_state_dict(torch.load(file), strict=True)
    assert differences(found.state_dict(), wanted) == {}
    tuned.load_state_dict(rounded(wanted, base.state_dict()))
    torch.testing.assert_close(features(found), features(tuned), rtol=1e-4, atol=1e-5)


def wavlms(folder: Path) -> tuple[Any, Any]:
    """A base and a fine-tune in transformers' form, `base` and `tuned`, and in torchaudio's, `base.pt`, `tuned.pt`."""
    models = [build("WavLM") for _ in range(2)]
    models[1].load_state_dict(moved(models[0].state_dict()))
    for name, model in zip(("base", "tuned"), models, strict=True):
        model.save_pretrained(folder / name)
        importer = toolkit("torchaudio.models.wav2vec2.utils").import_huggingface_model
        torch.save(importer(model).state_dict(), folder / f"{name}.pt")
    return models[0], models[1]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("base", "finetuned", "recipe"),
    [
        ("base.pt", "tuned", Recipe()),
        ("base", "tuned.pt", Recipe(keep_head=True)),
        ("base", "tuned.pt", Recipe()),
        ("base.pt", "tuned", Recipe(keep_head=True)),
        ("base.pt", "tuned.pt", Recipe()),
        ("base.pt", "tuned", Recipe(format="safetensors")),
    ],
)
def test_wavlm_with_query_key_and_value_in_one_tensor_meets_transformers(
    base: str, finetuned: str, recipe: Recipe, legacy: bool, tmp_path: Path
) -> None:
    ours, theirs = wavlms(tmp_path)
    for name in ("base.pt", "tuned.pt"):
        torch.save(torch.load(tmp_path / name), tmp_path / name, _use_new_zipfile_serialization=not legacy)
    result = merge(str(tmp_path / base), str(tmp_path / finetuned), tmp_path / "out", recipe, options=UNSYNCED)
    wanted = build("WavLM")
    wanted.load_state_dict(rounded(interpolate(ours.state_dict(), theirs.state_dict()), ours.state_dict()))
    owner = finetuned if recipe.keep_head else base
    if owner.endswith(".pt") and recipe.format == "auto":
        importer = toolkit("torchaudio.models.wav2vec2.utils").import_huggingface_model
        found = importer(ours)
        found.load_state_dict(torch.load(tmp_path / "out/merged_model.pt"), strict=True)
        exact = interpolate(*(torch.load(tmp_path / f"{name}.pt") for name in ("base", "tuned")))
        assert differences(found.state_dict(), exact) == {}
        torch.testing.assert_close(features(found), imported(wanted), rtol=1e-4, atol=1e-5)
    else:
        found = type(ours).from_pretrained(tmp_path / "out")
        names = set(found.state_dict()) - {"masked_spec_embed"}
        exact = interpolate(ours.state_dict(), theirs.state_dict())
        assert differences({n: found.state_dict()[n] for n in names}, {n: exact[n] for n in names}) == {}
    assert all(finding.level is Level.NOTE for finding in result.findings)


def pretrained(seed: int = 0) -> Any:
    """HuBERT as torchaudio pre-trains it: the encoder behind `wav2vec2.`, beside what pre-training needs."""
    torch.manual_seed(seed)
    make = toolkit("torchaudio.models").hubert_pretrain_model
    model = make(**SIZES, **MASKING, num_classes=10, final_dim=8, feature_grad_mult=0.1)
    torch.nn.init.uniform_(model.mask_generator.mask_embedding)
    return model


@pytest.fixture
def continued(tmp_path: Path) -> tuple[Tensors, Tensors, Tensors]:
    """A pre-trained model, the same after more pre-training, and their merge."""
    base = pretrained().state_dict()
    tuned = moved(base)
    torch.save(base, tmp_path / "base.pt")
    torch.save(tuned, tmp_path / "tuned.pt")
    return base, tuned, torch.load(merged(tmp_path / "base.pt", tmp_path / "tuned.pt", tmp_path / "out"))


def test_a_file_of_torchaudios_pre_training_is_written_back_as_one(continued: tuple[Tensors, Tensors, Tensors]) -> None:
    base, tuned, found = continued
    pretrained(seed=9).load_state_dict(found, strict=True)
    wanted = interpolate(base, {name: tensor for name, tensor in tuned.items() if name.startswith("wav2vec2.")})
    assert differences(*({n: t for n, t in w.items() if "mask_emb" not in n} for w in (found, wanted))) == {}


@pytest.mark.parametrize("keep_head", [False, True])
def test_a_recogniser_of_torchaudio_merges_with_its_pre_trained_model(keep_head: bool, tmp_path: Path) -> None:
    base = pretrained().state_dict()
    encoder = {name.removeprefix("wav2vec2."): t for name, t in base.items() if name.startswith("wav2vec2.")}
    recogniser = toolkit("torchaudio.models").wav2vec2_model(**SIZES, aux_num_out=12)
    recogniser.load_state_dict(moved(encoder), strict=False)
    tuned = recogniser.state_dict()
    torch.save(base, tmp_path / "base.pt")
    torch.save(tuned, tmp_path / "tuned.pt")
    file = merged(tmp_path / "base.pt", tmp_path / "tuned.pt", tmp_path / "out", keep_head=keep_head)
    if keep_head:
        wanted = interpolate(encoder, tuned) | {name: tuned[name].double() for name in tuned.keys() - encoder.keys()}
    else:
        wanted = interpolate(base, {f"wav2vec2.{name}": tensor for name, tensor in tuned.items()})
    found = recogniser if keep_head else pretrained(seed=9)
    found.load_state_dict(torch.load(file), strict=True)
    assert differences(found.state_dict(), wanted) == {}
