"""Write one pair of HuBERT Base's size in every container: python container_pairs.py FOLDER.

The weights are those of pairs.py, under transformers' names; for fairseq and S3PRL random ones under fairseq's names.
What exists is left alone. Takes 9 GB of disk.
"""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
from pairs import MAKERS, Weights, finetune, initialised, spread
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab_files import fairseq_container, optimizer_of, prefixed, s3prl_base, s3prl_finetune
from lab_models import Lab, build_lab, shaken

RANK = 8
ADAPTED = ("q_proj", "v_proj")
LAB = Lab(
    "hubert",
    layers=12,
    width=768,
    heads=12,
    inner=3072,
    conv=((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2),
    conv_pos=128,
    conv_pos_groups=16,
)


def write_safetensors(weights: Weights, folder: Path) -> None:
    folder.mkdir()
    MAKERS["hubert"].model().config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_legacy(weights: Weights, path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def write_whisper(weights: Weights, path: Path) -> None:
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": weights}, path)


def write_lightning(weights: Weights, path: Path) -> None:
    whole = {"epoch": 1, "global_step": 5000, "pytorch-lightning_version": "2.5.0", "loops": {}, "callbacks": {}}
    torch.save(whole | {"state_dict": prefixed("model.", weights)}, path)


def write_training(weights: Weights, path: Path) -> None:
    """Lightning's, with its optimizer."""
    state = {"state_dict": prefixed("model.", weights), "optimizer_states": [optimizer_of(weights)]}
    torch.save({"epoch": 1, "global_step": 5000, "pytorch-lightning_version": "2.5.0"} | state, path)


def write_nemo(weights: Weights, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with tarfile.open(path, "w:") as archive:
        for name, data in (("model_config.yaml", b"sample_rate: 16000\n"), ("model_weights.ckpt", buffer.getvalue())):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_lora(weights: Weights, folder: Path) -> None:
    """A LoRA of queries and values, as peft saves it."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
    }
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(ADAPTED), "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    pairs = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(ADAPTED) and weight.ndim == 2:
            for letter, shape in (("A", (RANK, weight.shape[1])), ("B", (weight.shape[0], RANK))):
                pairs[f"base_model.model.{module}.lora_{letter}.weight"] = 0.01 * torch.randn(shape)
    save_file(pairs, folder / "adapter_model.safetensors", metadata={"format": "pt"})


Writer = Callable[[Weights, Path], None]
OF_TRANSFORMERS: dict[str, tuple[Writer, Writer]] = {
    "safetensors": (write_safetensors, write_safetensors),
    "zip.pt": (torch.save, torch.save),
    "legacy.pt": (write_legacy, write_legacy),
    "whisper.pt": (write_whisper, write_whisper),
    "lightning.ckpt": (write_lightning, write_training),
    "training.ckpt": (write_training, write_training),
    "tar.nemo": (write_nemo, write_nemo),
    "lora": (write_safetensors, write_lora),
}
"""Ending of the names of a pair -> what writes its base and its fine-tune."""


def write_fairseq_base(weights: Weights, path: Path) -> None:
    torch.save(fairseq_container(LAB, weights) | {"last_optimizer_state": None}, path)


def write_fairseq_finetune(weights: Weights, path: Path) -> None:
    torch.save(fairseq_container(LAB, weights), path)


def write_s3prl_base(weights: Weights, path: Path) -> None:
    torch.save(s3prl_base(LAB, weights), path)


def write_s3prl_finetune(weights: Weights, path: Path) -> None:
    torch.save(s3prl_finetune(LAB, weights), path)


OF_FAIRSEQ: dict[str, tuple[Writer, Writer]] = {
    "fairseq.pt": (write_fairseq_base, write_fairseq_finetune),
    "s3prl.ckpt": (write_s3prl_base, write_s3prl_finetune),
}


def write(pair: tuple[Weights, Weights], writers: dict[str, tuple[Writer, Writer]], folder: Path) -> None:
    """Write both models, each beside its place and moved there when whole."""
    for kind, both in writers.items():
        for side, weights, writer in zip(("base", "finetuned"), pair, both, strict=True):
            path, part = folder / f"{side}-{kind}", folder / f"{side}-part-{kind}"
            if not path.exists():
                writer(weights, part)
                part.rename(path)


@torch.no_grad()
def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = initialised(MAKERS["hubert"])
    base = {name: spread(tensor).contiguous() for name, tensor in model.state_dict().items()}
    write((base, {name: finetune(name, tensor) for name, tensor in base.items()}), OF_TRANSFORMERS, folder)
    lab = {name: tensor.clone() for name, tensor in build_lab(LAB).state_dict().items()}
    write((lab, shaken(lab, scale=0.002)), OF_FAIRSEQ, folder)


if __name__ == "__main__":
    main()
