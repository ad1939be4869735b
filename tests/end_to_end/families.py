"""Tiny models of the families of transformers that hold a speech encoder, and what a merge of two of them must be.

The oracle knows nothing of our names: it finds what two models have in common by the classes of their modules, and
interpolates it in float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from float64 import Tensors, mixed, shaken
from models import transformers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WIDTH: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
_BLOCKS: dict[str, Any] = _WIDTH | {"num_hidden_layers": 2}
_WAVE = _BLOCKS | {
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
    "classifier_proj_size": 16,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "xvector_output_dim": 16,
    "tdnn_dim": (16,) * 5,
    "num_codevectors_per_group": 8,
}
_TEXT: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SEQUENCES = _TEXT | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 20,
    "max_target_positions": 10,
    "decoder_start_token_id": 1,
}
_MOONSHINE = _TEXT | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 2,
}
_SPEECHT5 = (
    _TEXT
    | {name: value for name, value in _SEQUENCES.items() if name.startswith(("encoder_", "decoder_"))}
    | {
        "hidden_size": 32,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "num_mel_bins": 8,
        "speech_decoder_prenet_units": 16,
        "speech_decoder_postnet_units": 16,
        "speaker_embedding_dim": 16,
        "reduction_factor": 1,
        "encoder_max_relative_position": 8,
    }
)
_SUBSAMPLED = _BLOCKS | {"num_mel_bins": 16, "subsampling_conv_channels": 8, "conv_kernel_size": 9}
_GRANITE = _BLOCKS | {"num_mel_bins": 4, "vocab_size": 12, "context_size": 8}

_TOKENS = torch.tensor([[1, 5, 7]])
_INPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "wave": {"input_values": (1, 4000)},
    "waves": {"input_values": (1, 1, 4000)},
    "frames": {"input_features": (1, 40, 16)},
    "mels": {"input_features": (1, 8, 40)},
    "spectrogram": {"input_values": (1, 64, 16)},
    # classes that want something of their own
    "Wav2Vec2ForXVector": {"input_values": (1, 8000)},
    "WavLMForXVector": {"input_values": (1, 8000)},
    "SpeechT5Model": {"input_values": (1, 9, 32), "decoder_input_values": (1, 3, 32)},
    "SpeechT5ForSpeechToSpeech": {
        "input_values": (1, 4000),
        "decoder_input_values": (1, 3, 8),
        "speaker_embeddings": (1, 16),
    },
}


@dataclass(frozen=True, eq=False)
class Family:
    """The classes of an architecture, from which models are built in one size."""

    bare: str
    published: str
    """The class of its usual published checkpoint."""
    tasks: tuple[str, ...]
    """Classes with heads."""
    sizes: Mapping[str, Any]
    input: str = "wave"
    body: str = ""
    """A class whose modules are no heads; the bare one if not given."""
    heads: Mapping[str, int] = field(default_factory=dict)
    """Settings of the heads of a fine-tune, where they differ from the base's."""

    @property
    def bases(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.bare, self.published)))

    @property
    def classes(self) -> tuple[str, ...]:
        return (self.bare, *self.tasks)


def _wave(name: str, *tasks: str, published: str = "Model", **sizes: Any) -> Family:
    tasks = tuple(name + task for task in ("ForCTC", "ForSequenceClassification", *tasks))
    return Family(f"{name}Model", name + published, tasks, _WAVE | sizes, heads={"num_labels": 3})


FAMILIES: tuple[Family, ...] = (
    _wave("Hubert"),
    _wave("Wav2Vec2", "ForXVector", "ForPreTraining", published="ForPreTraining"),
    _wave("WavLM", "ForXVector"),
    _wave("UniSpeech", "ForPreTraining", published="ForPreTraining"),
    _wave("UniSpeechSat", "ForPreTraining", published="ForPreTraining"),
    _wave("SEW", conv_dim=(8,) * 13),
    _wave("SEWD", conv_dim=(8,) * 13, max_position_embeddings=64, position_buckets=8),
    _wave("Data2VecAudio", num_conv_pos_embeddings=3),
    _wave("Wav2Vec2Conformer", "ForPreTraining", published="ForPreTraining"),
    Family(
        "Wav2Vec2BertModel",
        "Wav2Vec2BertModel",
        ("Wav2Vec2BertForCTC", "Wav2Vec2BertForSequenceClassification"),
        _WAVE | {"feature_projection_input_dim": 16},
        "frames",
    ),
    Family(
        "WhisperModel",
        "WhisperForConditionalGeneration",
        ("WhisperForConditionalGeneration", "WhisperForAudioClassification"),
        _SEQUENCES | {"num_mel_bins": 8, "classifier_proj_size": 16},
        "mels",
    ),
    Family(
        "Speech2TextModel",
        "Speech2TextForConditionalGeneration",
        ("Speech2TextForConditionalGeneration",),
        _SEQUENCES | {"input_feat_per_channel": 16, "conv_channels": 16, "max_source_positions": 60},
        "frames",
    ),
    Family(
        "SpeechT5Model",
        "SpeechT5ForSpeechToText",
        ("SpeechT5ForSpeechToText", "SpeechT5ForSpeechToSpeech"),
        _SPEECHT5,
    ),
    Family(
        "MoonshineModel",
        "MoonshineForConditionalGeneration",
        ("MoonshineForConditionalGeneration",),
        _MOONSHINE,
    ),
    Family(
        "MoonshineStreamingModel",
        "MoonshineStreamingForConditionalGeneration",
        ("MoonshineStreamingForConditionalGeneration",),
        _BLOCKS | _TEXT | {"num_key_value_heads": 2, "encoder_config": _BLOCKS | {"num_key_value_heads": 2}},
    ),
    Family(
        "ASTModel",
        "ASTForAudioClassification",
        ("ASTForAudioClassification",),
        _BLOCKS | {"max_length": 64, "num_mel_bins": 16, "patch_size": 8},
        "spectrogram",
        heads={"num_labels": 3},
    ),
    Family("ParakeetEncoder", "ParakeetForCTC", ("ParakeetForCTC",), _SUBSAMPLED, "frames"),
    Family("LasrEncoder", "LasrForCTC", ("LasrForCTC",), _SUBSAMPLED, "frames"),
    Family("GraniteSpeech5Encoder", "GraniteSpeech5ForCTC", ("GraniteSpeech5ForCTC",), _GRANITE, "frames"),
    Family("OmniASRAudioModel", "OmniASRForCTC", ("OmniASRForCTC",), _WAVE, "waves"),
    Family(
        "Wav2Vec2Model",
        "SpeechEncoderDecoderModel",
        ("SpeechEncoderDecoderModel",),
        _WAVE,
        body="SpeechEncoderDecoderModel",
    ),
)


def build(family: Family, name: str, seed: int = 0, **heads: Any) -> Any:
    """A model of a class, with random weights."""
    model = getattr(transformers(), name)
    torch.manual_seed(seed)
    return model(_settings(family, model, heads)).eval()


def _settings(family: Family, model: Any, heads: Mapping[str, int]) -> Any:
    """A configuration; those of some classes have another's within."""
    kind = model.config_class
    if model.__name__ == "SpeechEncoderDecoderModel":
        decoder = _SEQUENCES | {"is_decoder": True, "add_cross_attention": True}
        both = transformers().Wav2Vec2Config(**family.sizes), transformers().MBartConfig(**decoder)
        return kind.from_encoder_decoder_configs(*both, decoder_start_token_id=1, pad_token_id=0)
    within = [key for key in getattr(kind, "sub_configs", {}) if key in ("encoder_config", "audio_config")]
    if within and not {*within} & family.sizes.keys():
        text = {"vocab_size": 12, "pad_token_id": 0}
        return kind(**text, **{key: dict(family.sizes) for key in within})
    return kind(**{**family.sizes, **heads})


def fine_tune(base: Any, family: Family, name: str, seed: int = 1) -> Any:
    """A model of another class with what it has in common with the base, each weight moved a little."""
    model = build(family, name, seed, **family.heads)
    weights, moved = base.state_dict(), model.state_dict()
    torch.manual_seed(seed)
    for ours, theirs in in_common(family, base, model).items():
        if weights[ours].is_floating_point():
            moved[theirs].copy_(shaken(weights[ours]))
    return model


def in_common(family: Family, base: Any, finetuned: Any) -> dict[str, str]:
    """Name in the base -> name in the fine-tune, of all that is no head.

    It lies in the largest module whose class both models have and whose class is also within the family's body: all of
    the body in most pairs, its encoder where a task has no use for the decoder.
    """
    ours, theirs = (_places(model, _classes_of_body(family)) for model in (base, finetuned))
    sizes = {kind: _size(base.get_submodule(ours[kind])) for kind in ours.keys() & theirs.keys()}
    shared = max(sizes, key=lambda kind: sizes[kind])
    first, second = _stem(ours[shared]), _stem(theirs[shared])
    names = _below(base, first) & _below(finetuned, second)
    return {first + name: second + name for name in sorted(names)}


def alone(family: Family, owner: Any, other: Any) -> set[str]:
    """What of a model is no head, and has no counterpart in the other model."""
    return {*in_common(family, owner, owner)} - {*in_common(family, owner, other)}


def looks_swapped(family: Family, base: Any, finetuned: Any) -> bool:
    """Whether the base has the head of a task, and the fine-tune no head at all."""
    heads = [model.state_dict().keys() - _body(family, model) for model in (base, finetuned)]
    of_a_task = "PreTraining" not in type(base).__name__ and not base.config.is_encoder_decoder
    return bool(heads[0]) and not heads[1] and of_a_task


def _body(family: Family, model: Any) -> set[str]:
    """What is no head, nor one tensor with what is none."""
    weights = model.state_dict()
    return {name for within in in_common(family, model, model) for name in _same_place(weights, within)}


def interpolated(family: Family, base: Any, finetuned: Any, keep_head: bool) -> Tensors:
    """All tensors of the merge, in float64; those that are one tensor in the owner under each of their names."""
    owner = finetuned if keep_head else base
    ours, theirs = base.state_dict(), finetuned.state_dict()
    result = {name: tensor.double() for name, tensor in owner.state_dict().items()}
    for first, second in in_common(family, base, finetuned).items():
        merged = mixed(ours[first], theirs[second])
        result |= dict.fromkeys(_same_place(owner.state_dict(), second if keep_head else first), merged)
    return result


def inputs(family: Family, model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    name = type(model).__name__
    given = {key: torch.randn(shape) for key, shape in _INPUTS.get(name, _INPUTS[family.input]).items()}
    has_decoder = model.config.is_encoder_decoder and "ForAudioClassification" not in name
    return given | ({"decoder_input_ids": _TOKENS} if has_decoder and "decoder_input_values" not in given else {})


def run(family: Family, model: Any) -> dict[str, torch.Tensor]:
    """The tensors that a model answers with."""
    given = inputs(family, model)
    torch.manual_seed(0)  # some dropout of SpeechT5 is never off
    with torch.no_grad():
        answer = model(**given)
    return {key: value for key, value in answer.items() if isinstance(value, torch.Tensor)}


@functools.cache
def _classes_of_body(family: Family) -> frozenset[type]:
    return frozenset(type(module) for module in build(family, family.body or family.bare).modules())


def _places(model: Any, kinds: frozenset[type]) -> dict[type, str]:
    """Class of a module -> where the first of it is."""
    places: dict[type, str] = {}
    for path, module in model.named_modules():
        if type(module) in kinds:
            places.setdefault(type(module), path)
    return places


def _size(module: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _below(model: Any, stem: str) -> set[str]:
    return {name.removeprefix(stem) for name in model.state_dict() if name.startswith(stem)}


def _stem(path: str) -> str:
    return f"{path}." if path else ""


def _same_place(weights: Mapping[str, torch.Tensor], name: str) -> Iterator[str]:
    """The names of a tensor, tied ones too."""
    return (other for other, tensor in weights.items() if tensor.data_ptr() == weights[name].data_ptr())
