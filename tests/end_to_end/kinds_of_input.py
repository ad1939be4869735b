"""One real input for each kind in the README's table of what goes in; the first cell of a row is its key."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import layered
import numpy as np
import pytest
import torch
from harness import serving
from lab_files import s3prl_finetune
from lab_models import build_lab, shaken
from lab_pairs import HUBERT, loaded_twin
from models import build, fine_tune, transformers
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 2480617\n"


@dataclass
class Call:
    """How a kind of input is merged, and what must come out."""

    words: list[str]
    expected: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    """In float64; of a row that merges in silence."""
    env: Mapping[str, str] = field(default_factory=dict)


Builder = Callable[[Path, ExitStack], Call]
KINDS: dict[str, Builder] = {}


def kind(cell: str) -> Callable[[Builder], Builder]:
    """Register the builder of a row."""

    def register(builder: Builder) -> Builder:
        assert cell not in KINDS
        KINDS[cell] = builder
        return builder

    return register


def moved(weights: Mapping[str, torch.Tensor], seed: int = 1) -> Weights:
    """Weights as after a gentle fine-tuning; a tensor under two names stays one."""
    random = torch.Generator().manual_seed(seed)
    found: dict[int, torch.Tensor] = {}
    for tensor in weights.values():
        if tensor.data_ptr() not in found:
            noise = 0.02 * torch.randn(tensor.shape, generator=random) if tensor.is_floating_point() else 0
            found[tensor.data_ptr()] = tensor + noise
    return {name: found[tensor.data_ptr()] for name, tensor in weights.items()}


def mixed(base: Mapping[str, torch.Tensor], finetuned: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The formula at alpha 0.25, in float64."""
    return {
        name: (tensor.double() + 0.25 * (finetuned[name].double() - tensor.double())).numpy()
        for name, tensor in base.items()
        if tensor.is_floating_point()
    }


def hubert(folder: Path, **config: Any) -> tuple[Weights, Weights]:
    """A HuBERT in `base`, and what fine-tuning made of its weights."""
    model = build("Hubert", **config)
    model.save_pretrained(folder / "base")
    return model.state_dict(), moved(model.state_dict())


def whisper(folder: Path, **config: Any) -> Any:
    model = build("Whisper", "ForConditionalGeneration", **config)
    model.save_pretrained(folder / "base")
    return model


def pickled(folder: Path, content: object, *options: str) -> list[str]:
    """Save a fine-tune's file; the words that merge it."""
    torch.save(content, folder / "tuned.pt")
    return ["base", "tuned.pt", "-o", "out", *options]


def renamed(weights: Weights, name: Callable[[str], str]) -> Weights:
    return {name(key): tensor for key, tensor in weights.items()}


# merged


@kind("a fine-tune of another class")
def _(folder: Path, stack: ExitStack) -> Call:
    base = build("Hubert")
    base.save_pretrained(folder / "base")
    tuned = fine_tune(base, "Hubert", "ForCTC")
    tuned.save_pretrained(folder / "tuned")
    return Call(["base", "tuned", "-o", "out"], mixed(base.state_dict(), tuned.hubert.state_dict()))


@kind("a fine-tune of another toolkit")
def _(folder: Path, stack: ExitStack) -> Call:
    models = [build_lab(HUBERT), build_lab(HUBERT)]
    models[1].load_state_dict(shaken(models[0].state_dict()))
    base, tuned = (loaded_twin(HUBERT, model) for model in models)
    base.save_pretrained(folder / "base")
    words = pickled(folder, s3prl_finetune(HUBERT, models[1].state_dict()))
    return Call(words, mixed(base.state_dict(), tuned.state_dict()))


@kind("openai-whisper's own file")
def _(folder: Path, stack: ExitStack) -> Call:
    module = pytest.importorskip("whisper.model")
    dims = dict(
        zip("n_mels n_audio_ctx n_audio_state n_audio_head n_audio_layer".split(), (8, 20, 32, 2, 2), strict=True)
    )
    dims |= dict(
        zip("n_vocab n_text_ctx n_text_state n_text_head n_text_layer".split(), (60, 10, 32, 2, 2), strict=True)
    )
    torch.manual_seed(0)
    model = module.Whisper(module.ModelDimensions(**dims))
    torch.nn.init.normal_(model.decoder.positional_embedding)
    base = model.state_dict()
    tuned = moved(base)
    tuned["encoder.positional_embedding"] = base["encoder.positional_embedding"]  # a constant
    torch.save({"dims": dims, "model_state_dict": base}, folder / "base.pt")
    words = pickled(folder, {"dims": dims, "model_state_dict": tuned})
    return Call(["base.pt", *words[1:]], mixed(base, tuned))


def archived(folder: Path, weights: Weights, mode: str = "w") -> list[str]:
    """Save a fine-tune as NeMo does; the words that merge it."""
    torch.save(weights, folder / "model_weights.ckpt")
    with tarfile.open(folder / "tuned.nemo", mode) as archive:  # type: ignore[call-overload]
        archive.add(folder / "model_weights.ckpt", "./model_weights.ckpt")
    return ["base", "tuned.nemo", "-o", "out"]


@kind("NVIDIA's `.nemo`")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    return Call(archived(folder, tuned), mixed(base, tuned))


@kind("a `.nemo` that is compressed")
def _(folder: Path, stack: ExitStack) -> Call:
    return Call(archived(folder, hubert(folder)[1], "w:gz"))


@kind("a folder of SpeechBrain's, each module in a file of its own")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    (folder / "CKPT+1").mkdir()
    torch.save(renamed(tuned, "model.{}".format), folder / "CKPT+1" / "wav2vec2.ckpt")
    torch.save({"0.linear.w.weight": torch.ones(90, 90)}, folder / "CKPT+1" / "model.ckpt")
    (folder / "CKPT+1" / "brain.ckpt").write_text("step: 5")
    return Call(["base", "CKPT+1", "-o", "out"], mixed(base, tuned))


@kind("a base's file with an optimizer's state, or a second copy of the weights")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    state = {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": []}
    for name, weights in {"base": base, "tuned": tuned}.items():
        torch.save({"model_state_dict": weights, "optimizer": state}, folder / f"{name}.pt")
    return Call(["base.pt", "tuned.pt", "-o", "out"], mixed(base, tuned))


@kind("wrapper words in names")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)

    def wrap(name: str) -> str:
        head, layers, rest = name.partition("encoder.layers.")
        block, dot, inner = rest.partition(".")
        within = f"{head}{layers}{block}._fsdp_wrapped_module._checkpoint_wrapped_module.{inner}" if dot else name
        return f"module._orig_mod.{within}"

    return Call(pickled(folder, renamed(tuned, wrap)), mixed(base, tuned))


@kind("numbers in a prefix")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    words = pickled(folder, renamed(tuned, "encoders.0.{}".format) | {"decoder.1.weight": torch.ones(4, 32)})
    return Call(words, mixed(base, tuned))


@kind("weight norm as one tensor")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    stem = "encoder.pos_conv_embed.conv."
    magnitude, direction = (f"{stem}parametrizations.weight.original{part}" for part in "01")
    for weights in (base, tuned):
        weights[f"{stem}weight"] = torch._weight_norm(weights.pop(direction), weights.pop(magnitude), 2)
    return Call(pickled(folder, tuned), mixed(base, tuned))


@kind("a pickle of lists, tuples, whole numbers or arrays")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    arrays = defaultdict(list, {name: tensor.numpy() for name, tensor in tuned.items()})
    return Call(pickled(folder, ({0: "an epoch"}, [{1: arrays}])), mixed(base, tuned))


@kind("embeddings that are stored twice")
def _(folder: Path, stack: ExitStack) -> Call:
    base = whisper(folder).state_dict()
    tuned = moved(base)
    for name, weights in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir(exist_ok=True)
        twice = {key: tensor.clone() for key, tensor in weights.items()}
        save_file(twice, folder / name / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "base/config.json", folder / "tuned")
    return Call(["base", "tuned", "-o", "out"], mixed(base, tuned))


@kind("one of two encoders in a file, as `last.ckpt#student`")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    words = pickled(folder, {"teacher": moved(base, 2), "student": tuned})
    return Call([words[0], "tuned.pt#student", *words[2:]], mixed(base, tuned))


@kind("settings in a `processor_config.json`")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    model = build("Hubert")
    model.load_state_dict(tuned)
    model.save_pretrained(folder / "tuned")
    extractor = transformers().Wav2Vec2FeatureExtractor(return_attention_mask=True).to_dict()
    for name in ("base", "tuned"):
        (folder / name / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    return Call(["base", "tuned", "-o", "out"], mixed(base, tuned))


@kind("a fine-tune that lacks a stack as a whole")
def _(folder: Path, stack: ExitStack) -> Call:
    base = whisper(folder)
    fine_tune(base, "Whisper", "ForAudioClassification").save_pretrained(folder / "tuned")
    return Call(["base", "tuned", "-o", "out"])


@kind("a language model beside the encoder")
def _(folder: Path, stack: ExitStack) -> Call:
    voxtral = next(family for family in layered.FAMILIES_BY_LAYERS if family.name == "Voxtral")
    voxtral.save(folder / "base")
    base = layered.weights(folder / "base")
    shutil.copytree(folder / "base", folder / "tuned")
    tuned = moved(base)
    save_file(tuned, folder / "tuned/model.safetensors", {"format": "pt"})
    stays = {name: tensor for name, tensor in base.items() if name.startswith(voxtral.text)}
    return Call(["base", "tuned", "-o", "out"], mixed(base, tuned | stays))


@kind("a larger vocabulary")
def _(folder: Path, stack: ExitStack) -> Call:
    base = whisper(folder).state_dict()
    larger = build("Whisper", "ForConditionalGeneration", vocab_size=63)
    tuned, weights = moved(base), larger.state_dict()
    for name, tensor in tuned.items():
        weights[name][: len(tensor)] = tensor
    larger.save_pretrained(folder / "tuned")
    return Call(["base", "tuned", "-o", "out"])


@kind("a Trainer's checkpoint without tokenizer, with `--keep-head`")
def _(folder: Path, stack: ExitStack) -> Call:
    base = whisper(folder)
    for name, text in (("vocab", '{"a": 0}'), ("tokenizer_config", "{}"), ("special_tokens_map", "{}")):
        (folder / f"base/{name}.json").write_text(text)
    (folder / "base/merges.txt").write_text("#version: 0.2\n")
    base.load_state_dict(moved(base.state_dict()))
    base.save_pretrained(folder / "run/checkpoint-500")
    return Call(["base", "run/checkpoint-500", "--keep-head", "-o", "out"])


@kind("a fine-tune that has a stack in part, with `--allow-partial`")
def _(folder: Path, stack: ExitStack) -> Call:
    return Call([*in_part(folder, stack).words, "--allow-partial"])


# refused


@kind("a fine-tune that has a stack in part")
def in_part(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    return Call(pickled(folder, {name: tensor for name, tensor in tuned.items() if ".attention." not in name}))


@kind("fewer or more layers than the base")
def _(folder: Path, stack: ExitStack) -> Call:
    base, _ = hubert(folder, num_hidden_layers=3)
    student = build("Hubert", num_hidden_layers=2)
    weights = student.state_dict()
    for name, tensor in moved(base).items():
        if name in weights:
            weights[name].copy_(tensor)
    student.save_pretrained(folder / "tuned")
    return Call(["base", "tuned", "-o", "out"])


@kind("tensors of the same shapes under other names")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    return Call(pickled(folder, renamed(tuned, lambda name: name.replace("feed_forward.", "mlp."))))


@kind("an adapter beside a whole model")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    (folder / "base/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    return Call(pickled(folder, tuned))


@kind("a model pickled whole beside a state dict")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    torch.save({"model": torch.nn.Linear(1000, 100), "model_ema": tuned}, folder / "run.pt")
    return Call(["base", "run.pt", "-o", "out"])


def lora(base: Weights, name: str = "") -> tuple[Weights, Weights]:
    """LoRA of rank 4 on each q_proj, and the weights with it at alpha 8."""
    random, factors, whole = torch.Generator().manual_seed(1), {}, dict(base)
    for weight in [weight for weight in base if weight.endswith("q_proj.weight")]:
        a, b = 0.1 * torch.randn(4, 32, generator=random), 0.1 * torch.randn(32, 4, generator=random)
        stem = weight.removesuffix("weight")
        factors |= {f"{stem}lora_A.{name}weight": a, f"{stem}lora_B.{name}weight": b}
        whole[weight] = base[weight].double() + 8 / 4 * (b.double() @ a.double())
    return factors, whole


def adapter(folder: Path, **settings: object) -> Call:
    base, _ = hubert(folder)
    factors, whole = lora(base)
    (folder / "tuned").mkdir()
    if settings:
        (folder / "tuned/adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8} | settings))
    save_file(renamed(factors, lambda name: f"base_model.model.{name}"), folder / "tuned/adapter_model.safetensors")
    return Call(["base", "tuned", "-o", "out"], mixed(base, whole))


def lora_inside(folder: Path, *options: str) -> Call:
    base, _ = hubert(folder)
    factors, whole = lora(base, "default.")
    wrapped = renamed(base, lambda name: name.replace("q_proj.", "q_proj.base_layer.")) | factors
    return Call(pickled(folder, wrapped, *options), mixed(base, whole))


@kind("LoRA inside a whole model, with `--lora-alpha`")
def _(folder: Path, stack: ExitStack) -> Call:
    return lora_inside(folder, "--lora-alpha", "8")


@kind("LoRA inside a whole model, of unknown alpha")
def _(folder: Path, stack: ExitStack) -> Call:
    return lora_inside(folder)


@kind("an adapter of peft, LoRA or rsLoRA")
def _(folder: Path, stack: ExitStack) -> Call:
    return adapter(folder, peft_type="LORA")


@kind("an adapter without its `adapter_config.json`")
def _(folder: Path, stack: ExitStack) -> Call:
    return adapter(folder)


@kind("DoRA, IA3 and other adapters")
def _(folder: Path, stack: ExitStack) -> Call:
    return adapter(folder, peft_type="LORA", use_dora=True)


@kind("an adapter of MMS, `adapter.fra.safetensors`")
def _(folder: Path, stack: ExitStack) -> Call:
    model = build("Wav2Vec2", "ForCTC", adapter_attn_dim=4, do_stable_layer_norm=True)
    model.save_pretrained(folder / "base")
    base, names = model.state_dict(), model._get_adapters()
    tuned = moved({name: base[name] for name in names})
    save_file(tuned, folder / "adapter.fra.safetensors")
    body = {name: tensor for name, tensor in tuned.items() if not name.startswith("lm_head.")}
    return Call(["base", "adapter.fra.safetensors", "-o", "out"], mixed(base, base | body))


@kind("8-bit or 4-bit weights")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    for name in [name for name in tuned if name.endswith("_proj.weight") and "layers" in name]:
        tuned[name], scale = (100 * tuned[name]).to(torch.int8), torch.ones(len(tuned[name]))
        tuned[name.removesuffix("weight") + "SCB"] = scale
    return Call(pickled(folder, tuned))


@kind("placeholders of ZeRO-3, flat parameters of FSDP")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    return Call(
        pickled(folder, {name: torch.empty(0) if tensor.ndim > 1 else tensor for name, tensor in tuned.items()})
    )


@kind("two encoders in one file")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    return Call(pickled(folder, {"online": tuned, "target": moved(base, 2)}))


@kind("a base that the fine-tune was not made from")
def _(folder: Path, stack: ExitStack) -> Call:
    build("Hubert").save_pretrained(folder / "base")
    build("Hubert", seed=7).save_pretrained(folder / "tuned")
    return Call(["base", "tuned", "-o", "out"])


@kind("base and fine-tune in the wrong order")
def _(folder: Path, stack: ExitStack) -> Call:
    base = build("Hubert")
    base.save_pretrained(folder / "base")
    fine_tune(base, "Hubert", "ForCTC").save_pretrained(folder / "tuned")
    return Call(["tuned", "base", "-o", "out"])


@kind("NaN or infinity")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    tuned["encoder.layers.1.final_layer_norm.bias"][3] = torch.nan
    return Call(pickled(folder, tuned))


@kind("a Git LFS pointer in place of a file")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    (folder / "base/preprocessor_config.json").write_text(POINTER)
    return Call(pickled(folder, tuned))


@kind("a `config.json` that names code which is not there")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    config = json.loads((folder / "base/config.json").read_text())
    (folder / "base/config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_own.Own"}}))
    return Call(pickled(folder, tuned))


@kind("a `config.json` that does not fit the tensors")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    config = json.loads((folder / "base/config.json").read_text())
    (folder / "base/config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    return Call(pickled(folder, tuned))


@kind("a model without `config.json`, whose class the other's tells")
def _(folder: Path, stack: ExitStack) -> Call:
    hubert(folder)
    fine_tune(build("Hubert"), "Hubert", "ForCTC").save_pretrained(folder / "tuned")
    (folder / "tuned/config.json").unlink()
    return Call(["base", "tuned", "--keep-head", "-o", "out"])


@kind("a folder without `config.json`, whose class the other's does not tell")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    build("Hubert").save_pretrained(folder / "tuned", state_dict=tuned)
    (folder / "base/config.json").unlink()
    save_file(base | {"my_head.weight": torch.ones(4, 4)}, folder / "base/model.safetensors")
    return Call(["base", "tuned", "-o", "out"])


@kind("two models without `config.json`")
def _(folder: Path, stack: ExitStack) -> Call:
    base, tuned = hubert(folder)
    (folder / "base/config.json").unlink()
    return Call(pickled(folder, tuned), mixed(base, tuned))


@kind("a link that leads out of the model's folder")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    (folder / "secret.json").write_text("{}")
    (folder / "base/preprocessor_config.json").symlink_to(folder / "secret.json")
    return Call(pickled(folder, tuned))


@kind("a path with a slip in it")
def _(folder: Path, stack: ExitStack) -> Call:
    hubert(folder)
    (folder / "exp/hubert-asr").mkdir(parents=True)
    return Call(["base", "exp/hubert-ars", "-o", "out"], env={"HF_HUB_OFFLINE": "1"})


@kind("a Trainer's folder that holds `checkpoint-N/` only")
def _(folder: Path, stack: ExitStack) -> Call:
    hubert(folder)
    for step in (400, 500):
        build("Hubert").save_pretrained(folder / f"run/checkpoint-{step}")
    return Call(["base", "run", "-o", "out"])


@kind("shards without their index")
def _(folder: Path, stack: ExitStack) -> Call:
    weights, _ = hubert(folder)
    tuned = fine_tune(build("Hubert"), "Hubert", "ForCTC")
    tuned.save_pretrained(folder / "tuned", max_shard_size="60KB")
    (folder / "tuned/model.safetensors.index.json").unlink()
    return Call(["base", "tuned", "-o", "out"], mixed(weights, tuned.hubert.state_dict()))


@kind("shards of which one is missing")
def _(folder: Path, stack: ExitStack) -> Call:
    hubert(folder)
    fine_tune(build("Hubert"), "Hubert", "ForCTC").save_pretrained(folder / "tuned", max_shard_size="60KB")
    for name in ("model.safetensors.index.json", "model-00002-of-00003.safetensors"):
        (folder / "tuned" / name).unlink()
    return Call(["base", "tuned", "-o", "out"])


@kind("the same model twice")
def _(folder: Path, stack: ExitStack) -> Call:
    hubert(folder)
    (folder / "latest").symlink_to("base")
    return Call(["base", "latest/model.safetensors", "-o", "out"])


# options


@kind("an option without the one that it serves")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    return Call(pickled(folder, tuned, "--plot", "cka.png", "--create-pr"))


@kind("`--cka` on what cannot be compared")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    (folder / "clip.wav").write_text("no audio")
    return Call(pickled(folder, tuned, "--cka", "--probe", "clip.wav"))


@kind("`--push-to-hub` to where an adapter, a variant or shards are")
def _(folder: Path, stack: ExitStack) -> Call:
    _, tuned = hubert(folder)
    server = stack.enter_context(serving(folder / "hub"))
    server.repo("alice/used", {"adapter_config.json": "{}", "model.fp16.safetensors": b"old"})
    return Call(pickled(folder, tuned, "--push-to-hub", "alice/used"), env=server.env())
