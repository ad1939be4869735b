"""The folder in which the guides' commands are typed: small models, recordings and scripts of the names there."""

from __future__ import annotations

import copy
import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import soundfile
import torch
from lab_files import s3prl_base, s3prl_finetune
from lab_models import BASE, build_lab, shaken
from lab_pairs import config_of, loaded_twin
from lora_pairs import factors, save_adapter
from models import build, transformers
from processes import COMMAND

from speechft_merge.similarity.probe import BUILT_IN

if TYPE_CHECKING:
    from pathlib import Path

    from harness import HubServer

_STRIDES = ((16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2)
LAB = replace(BASE["hubert"], layers=12, conv=_STRIDES)
"""A HuBERT Base in small: its twelve blocks and its 50 frames a second."""
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
EVALUATE = """#!/bin/sh
# a score of a model: its first byte
od -An -tu1 -j4096 -N1 "$1/model.safetensors"
"""


def make_workspace(folder: Path) -> Path:
    """Write all that a guide's commands name."""
    _save_huberts(folder)
    _save_whispers(folder)
    _save_speech(folder)
    script = folder / "evaluate.sh"
    script.write_text(EVALUATE)
    script.chmod(0o755)
    return folder


def add_program(folder: Path) -> str:
    """Put the command and its Python into a folder; return that as PATH has it."""
    folder.mkdir(parents=True)
    for name, command in {"speechft-merge": COMMAND, "python": [sys.executable]}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (folder / name).chmod(0o755)
    return str(folder)


def fill_hub(hub: HubServer, folder: Path) -> None:
    """Put the models where the guide on the Hub has them."""
    hub.delete("me/hubert-speech-ft")  # of another page
    base, asr = folder / "hubert-base-ls960", folder / "hubert-asr"
    hub.repo("facebook/hubert-base-ls960", base, branches=["refs/pr/2"])
    checkpoint = {f"checkpoint-2000/{path.name}": path for path in asr.iterdir()}
    hub.repo("me/hubert-asr", {path.name: path for path in asr.iterdir()} | checkpoint, tags=["v1"])


def training(folder: Path) -> dict[str, Any]:
    """What the guide on stage 1 takes for granted: a model, data, the Trainer's arguments, batches."""
    model = transformers().HubertForSequenceClassification.from_pretrained(folder / "hubert-emotion")
    model.requires_grad_(True)
    sound = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    data = [{"input_values": sound, "labels": torch.tensor(number % 2)} for number in range(4)]
    batches = [{"input_values": sound[None], "labels": torch.tensor([0])} for _ in range(10)]
    arguments = transformers().TrainingArguments(
        str(folder / "run"), max_steps=10, per_device_train_batch_size=2, report_to=[], save_strategy="no", use_cpu=True
    )
    return {"model": model, "data": data, "batches": batches, "arguments": arguments, "evaluate": lambda _: 0.0}


def _save_huberts(folder: Path) -> None:
    lab = build_lab(LAB)
    weights, config = lab.state_dict(), config_of(LAB)
    base = loaded_twin(LAB, lab)
    extractor = transformers().Wav2Vec2FeatureExtractor(return_attention_mask=True)
    kinds = dict.fromkeys(("hubert-asr", "hubert-asr-2", "hubert-asr-3"), "ForCTC")
    kinds["hubert-emotion"] = "ForSequenceClassification"
    models = {"hubert-base-ls960": base}
    for seed, (name, kind) in enumerate(kinds.items(), 1):
        models[name] = build("Hubert", kind, **config, vocab_size=len(LETTERS))
        models[name].hubert.load_state_dict(shaken(base.state_dict(), seed))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        extractor.save_pretrained(folder / name)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    tokenizer = transformers().Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    transformers().Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder / "hubert-asr")

    (folder / "exp/asr").mkdir(parents=True)
    torch.save(s3prl_base(LAB, weights), folder / "hubert_base_ls960.pt")
    torch.save(s3prl_finetune(LAB, shaken(weights)), folder / "exp/asr/dev-best.ckpt")
    own = base.state_dict()
    torch.save({"teacher": shaken(own, 2), "student": shaken(own, 3)}, folder / "ssl.ckpt")
    torch.save(own | _loralib(own), folder / "last.pth")


def _loralib(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LoRA on every q_proj, as loralib names it."""
    adapter, _ = factors(weights)
    kept = {name.removeprefix("base_model.model."): tensor for name, tensor in adapter.items() if "q_proj" in name}
    return {name.removesuffix(".weight"): tensor for name, tensor in kept.items()}


def _save_whispers(folder: Path) -> None:
    base = build("Whisper", "ForConditionalGeneration")
    base.save_pretrained(folder / "whisper-small")
    tuned = copy.deepcopy(base)
    tuned.load_state_dict(shaken(base.state_dict()))
    tuned.save_pretrained(folder / "whisper-fr")
    adapter, _ = factors(base.state_dict())
    save_adapter(folder / "whisper-lora", adapter)


def _save_speech(folder: Path) -> None:
    """Real speech: some with texts beside it, some sorted into two classes."""
    (folder / "dev-clean").mkdir()
    for path in sorted(BUILT_IN.glob("*.flac")):
        samples, rate = soundfile.read(path)
        piece = samples[: 2 * rate]
        soundfile.write(folder / "dev-clean" / path.name, piece, rate)
        (folder / "dev-clean" / path.name).with_suffix(".txt").write_text("go forward ten metres\n")
        label = "calm" if path.name.startswith("en-") else "angry"
        (folder / "data/emotion" / label).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "data/emotion" / label / f"{path.stem}.wav", piece[:rate], rate)
