"""Encoders of any family of transformers, and text decoders, against the hidden states that the classes give."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import soundfile
import torch
from models import build, fine_tune, model_class, transformers
from typer.testing import CliRunner

from speechft_merge import ProbeRequest, compare
from speechft_merge.bench import SweepRequest
from speechft_merge.cli.app import app
from speechft_merge.errors import CheckpointError, UsageError
from speechft_merge.record.layers import LayerKey
from speechft_merge.similarity.encoders import build_encoder
from speechft_merge.similarity.inputs import Batch, InputMaker

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")

ENCODERS = {
    "SEW": ("Model", "Wav2Vec2FeatureExtractor"),
    "SEWD": ("Model", "Wav2Vec2FeatureExtractor"),
    "UniSpeech": ("Model", "Wav2Vec2FeatureExtractor"),
    "UniSpeechSat": ("Model", "Wav2Vec2FeatureExtractor"),
    "Wav2Vec2Conformer": ("Model", "Wav2Vec2FeatureExtractor"),
    "AST": ("Model", "ASTFeatureExtractor"),
    "ParakeetEncoder": ("", "ParakeetFeatureExtractor"),
    "Speech2Text": ("ForConditionalGeneration", "Speech2TextFeatureExtractor"),
    "SpeechT5": ("ForSpeechToText", "SpeechT5FeatureExtractor"),
    "Moonshine": ("ForConditionalGeneration", "Wav2Vec2FeatureExtractor"),
}
"""Family -> a class of it, and what its inputs are made by."""

DECODERS = {
    "Whisper": "ForConditionalGeneration",
    "Speech2Text": "ForConditionalGeneration",
    "SpeechT5": "ForSpeechToText",
    "Moonshine": "ForConditionalGeneration",
}


def samples(clip: Path) -> Any:
    return soundfile.read(clip, dtype="float32")[0]


def saved(family: str, kind: str, folder: Path, **config: Any) -> tuple[str, str]:
    """A base and a fine-tune that moved every weight, saved by transformers."""
    model = build(family, kind, **config)
    model.save_pretrained(folder / "base")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "finetuned")
    return str(folder / "base"), str(folder / "finetuned")


def encoder_of(model: Any) -> Any:
    return model.get_encoder() if model.config.is_encoder_decoder else model


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # AST's own settings, where torchaudio is missing
@pytest.mark.parametrize("family", ENCODERS)
def test_every_layer_is_the_hidden_state_that_the_class_gives(family: str, few_clips: tuple[Path, ...]) -> None:
    kind, extractor = ENCODERS[family]
    model = build(family, kind)
    inner = encoder_of(model)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    encoder = build_encoder("model", config, dict(inner.state_dict()), CPU)
    (batch,) = InputMaker(config, {"feature_extractor_type": extractor}).batches([samples(few_clips[0])])
    (found,) = encoder.run(batch)
    made = getattr(transformers(), extractor)()([samples(few_clips[0])], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        out = inner(**made, output_hidden_states=True)
    blocks = [state for key, state in found.items() if key.part in ("input", "layers")]
    assert [key.label for key in found][:3] == ["input", "0", "1"]
    for ours, theirs in zip(blocks[:-1], out.hidden_states, strict=False):
        torch.testing.assert_close(ours, theirs[0])
    torch.testing.assert_close([*found.values()][-1], out.last_hidden_state[0])


@pytest.mark.parametrize("family", ["SEW", "AST", "ParakeetEncoder", "Speech2Text", "SpeechT5", "Moonshine"])
def test_a_pair_of_any_family_is_compared(family: str, few_clips: tuple[Path, ...], tmp_path: Path) -> None:
    pair = saved(family, ENCODERS[family][0], tmp_path)
    report = compare(*pair, request=ProbeRequest(paths=few_clips))
    assert [layer.key.label for layer in report.layers][:3] == ["input", "0", "1"]
    for layer in report.layers:
        assert math.isfinite(layer.pairs["base_finetuned"].cka)
        assert layer.key.part == "output" or layer.drift
    assert any("padding counts" in warning for warning in report.warnings) is (family == "AST")


def test_the_encoder_of_a_recogniser_is_run_by_its_own_configuration(
    few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    encoder = build("ParakeetEncoder", "").config
    settings = transformers().ParakeetCTCConfig(vocab_size=12, pad_token_id=0, encoder_config=encoder.to_dict())
    model = transformers().ParakeetForCTC(settings)
    model.save_pretrained(tmp_path / "recogniser")
    model.encoder.save_pretrained(tmp_path / "encoder")
    request = ProbeRequest(paths=few_clips)
    report = compare(str(tmp_path / "recogniser"), str(tmp_path / "encoder"), request=request)
    assert {layer.pairs["base_finetuned"].cka for layer in report.layers} == {1.0}


def test_frames_are_counted_where_the_model_makes_them(few_clips: tuple[Path, ...], tmp_path: Path) -> None:
    """Of SEW's, two are squeezed into one; no formula of the inputs tells."""
    pair = saved("SEW", "Model", tmp_path)
    whole = compare(*saved("Hubert", "Model", tmp_path / "other"), request=ProbeRequest(paths=few_clips))
    report = compare(*pair, request=ProbeRequest(paths=few_clips))
    assert report.frames == pytest.approx(whole.frames / 2, abs=len(few_clips))


class Recurrent(torch.nn.Module):
    """One block run three times, whose class gives its hidden states: there is no list of blocks."""

    base_model_prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.shared = torch.nn.Linear(1, 8), torch.nn.Linear(8, 8)

    def forward(self, input_values: torch.Tensor, output_hidden_states: bool = False) -> Any:
        states = [self.lift(input_values[..., None])]
        for _ in range(3):
            states.append(torch.tanh(self.shared(states[-1])))
        given = tuple(states) if output_hidden_states else None
        return transformers().modeling_outputs.BaseModelOutput(last_hidden_state=states[-1], hidden_states=given)


def test_without_a_list_of_blocks_the_layers_are_the_hidden_states_that_the_class_gives() -> None:
    from speechft_merge.executor.drift import Drift
    from speechft_merge.similarity.encoders import wrap_encoder
    from speechft_merge.similarity.models import drift_by_layer

    model, inputs = Recurrent(), torch.randn(1, 50)
    encoder = wrap_encoder("model", model, CPU)
    (found,) = encoder.run(Batch({"input_values": inputs}, None))
    assert [key.label for key in found] == ["input", "0", "1", "2"]
    for ours, theirs in zip(found.values(), model(inputs, output_hidden_states=True).hidden_states, strict=True):
        assert torch.equal(ours, theirs[0])
    drifts = {"shared.weight": Drift(1.0, 4.0, True)}
    assert {*drift_by_layer(drifts, encoder, found).values()} == {None}, "no weights belong to one layer alone"


def test_a_codec_is_refused_with_the_reason(few_clips: tuple[Path, ...], tmp_path: Path) -> None:
    config = transformers().EncodecConfig(hidden_size=16, num_filters=4, codebook_size=16, codebook_dim=16)
    for name in ("base", "finetuned"):
        transformers().EncodecModel(config).save_pretrained(tmp_path / name)
    with pytest.raises(CheckpointError, match="EncodecModel does not give hidden states"):
        compare(str(tmp_path / "base"), str(tmp_path / "finetuned"), request=ProbeRequest(paths=few_clips))


def test_an_encoder_beside_other_models_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    config = {"model_type": "clap", "audio_config": {"hidden_size": 32}}
    with pytest.raises(CheckpointError, match="the encoder of 'clap' stands beside other models"):
        build_encoder("model", config, {}, CPU)


def test_an_encoder_that_reads_text_is_not_taken_for_one_of_speech() -> None:
    layers = {f"{stack}_layers": 1 for stack in ("speech_encoder", "encoder", "decoder", "t2u_encoder", "t2u_decoder")}
    sizes = {"hidden_size": 16, "vocab_size": 20, "t2u_vocab_size": 20, "char_vocab_size": 20}
    config = {"model_type": "seamless_m4t_v2", "architectures": ["SeamlessM4Tv2SpeechEncoder"], **layers, **sizes}
    with pytest.raises(CheckpointError, match="takes SeamlessM4Tv2Encoder, which reads text"):
        build_encoder("model", config, {}, CPU)


def test_inputs_of_another_kind_than_a_class_takes_are_told_with_what_mends_it(few_clips: tuple[Path, ...]) -> None:
    settings = transformers().Qwen2AudioEncoderConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16
    )
    model = transformers().AutoModel.from_config(settings)
    encoder = build_encoder("model", settings.to_dict(), dict(model.state_dict()), CPU)
    (batch,) = InputMaker(settings.to_dict(), {}).batches([samples(few_clips[0])])
    with pytest.raises(
        CheckpointError, match="takes input_features, the feature extractor makes input_values; put the"
    ):
        encoder.run(batch)


@pytest.mark.parametrize(
    "architectures", [["WhisperFeatureExtractor"], ["__builtins__"], ["models"], [None], {"a": 1}, [], None]
)
def test_a_config_that_names_no_model_gives_the_encoder_of_the_bare_class(architectures: Any) -> None:
    model = build("Moonshine", "ForConditionalGeneration")
    config = model.config.to_dict() | {"architectures": architectures}
    encoder = build_encoder("model", config, dict(model.get_encoder().state_dict()), CPU)
    assert type(encoder.model) is type(model.get_encoder())


@pytest.mark.parametrize("architectures", [["PreTrainedModel"], 5])
def test_a_config_that_names_what_cannot_be_is_refused(architectures: Any) -> None:
    config = build("Moonshine", "ForConditionalGeneration").config.to_dict() | {"architectures": architectures}
    with pytest.raises(CheckpointError):
        build_encoder("model", config, {}, CPU)


# text decoders


def written_by(model: Any, inputs: dict[str, torch.Tensor], most: int) -> list[int]:
    """The best token at each step, the whole text run again each time."""
    tokens = [model.config.decoder_start_token_id]
    with torch.no_grad():
        for _ in range(most):
            best = int(model(**inputs, decoder_input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
            if best == model.config.eos_token_id:
                break
            tokens.append(best)
    return tokens


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_run_on_what_the_base_writes_and_gives_its_classes_hidden_states(
    family: str, few_clips: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechft_merge.similarity.decoding.TOKENS", 5)
    model = build(family, DECODERS[family])
    config = model.config.to_dict()
    encoder = build_encoder("model", config, dict(model.state_dict()), CPU, decoder=True)
    (batch,) = InputMaker(config, {}).batches([samples(few_clips[0])])
    batch = encoder.with_tokens(batch)
    inputs = {name: values for name, values in batch.inputs.items() if name != "decoder_input_ids"}
    assert batch.inputs["decoder_input_ids"].tolist() == [written_by(model, inputs, 5)]
    (found,) = encoder.run(batch)
    with torch.no_grad():
        out = model(**batch.inputs, output_hidden_states=True)
    for stack, given in (("encoder", out.encoder_hidden_states), ("decoder", out.decoder_hidden_states)):
        states = [found[LayerKey("input", stack)], *(found[LayerKey("layers", stack, block)] for block in range(2))]
        frames = len(states[0])
        assert frames == len(batch.inputs["decoder_input_ids"][0]) or stack == "encoder"
        for ours, theirs in zip(states[:2], given, strict=False):
            torch.testing.assert_close(ours, theirs[0, :frames])
        last = found.get(LayerKey("final_norm", stack), states[-1])
        torch.testing.assert_close(last, given[-1][0, :frames])


def test_the_token_that_ends_a_text_is_left_out(few_clips: tuple[Path, ...]) -> None:
    model = build("Whisper", "ForConditionalGeneration")
    (batch,) = InputMaker(model.config.to_dict(), {}).batches([samples(few_clips[0])])
    first = written_by(model, batch.inputs, 1)[1]
    config = model.config.to_dict() | {"eos_token_id": first}
    encoder = build_encoder("model", config, dict(model.state_dict()), CPU, decoder=True)
    written = encoder.with_tokens(batch).inputs["decoder_input_ids"]
    assert written.tolist() == [[model.config.decoder_start_token_id]]


@pytest.fixture
def whispers(tmp_path: Path) -> tuple[str, str]:
    return saved("Whisper", "ForConditionalGeneration", tmp_path)


def test_a_comparison_names_the_layers_of_the_decoder_as_rules_do(
    whispers: tuple[str, str], few_clips: tuple[Path, ...]
) -> None:
    alone = compare(*whispers, request=ProbeRequest(paths=few_clips))
    report = compare(*whispers, request=ProbeRequest(paths=few_clips, decoder=True, grid=True, null=True))
    labels = [layer.key.label for layer in report.layers]
    assert labels == [
        *(layer.key.label for layer in alone.layers),
        "decoder.input",
        "decoder.0",
        "decoder.1",
        labels[-1],
    ]
    assert labels[-1] == "decoder.final_norm"
    for one, other in zip(alone.layers, report.layers, strict=False):
        assert one.pairs["base_merged"].cka == pytest.approx(other.pairs["base_merged"].cka, abs=1e-6)
        assert one.drift == other.drift
    assert report.frames == alone.frames
    stacks = [layer["stack"] for layer in report.to_json()["layers"]]
    assert stacks == ["encoder"] * 4 + ["decoder"] * 4
    assert [line.split(",")[2] for line in report.to_csv().splitlines()[1:]] == [s for s in stacks for _ in range(3)]
    for (row, one), (column, other) in itertools.product(enumerate(stacks), repeat=2):
        assert math.isfinite(report.grids["base_merged"][row][column]) is (one == other)


def test_the_drift_of_a_decoder_is_that_of_its_weights(whispers: tuple[str, str], few_clips: tuple[Path, ...]) -> None:
    report = compare(*whispers, request=ProbeRequest(paths=few_clips, decoder=True))
    drifts = {layer.key.label: layer.drift for layer in report.layers}
    ours, theirs = (model_class("Whisper", "Model").from_pretrained(path).decoder.state_dict() for path in whispers)
    rows = {
        "decoder.0": "layers.0.",
        "decoder.1": "layers.1.",
        "decoder.final_norm": "layer_norm.",
        "decoder.input": "embed",
    }
    for label, first in rows.items():
        names = [name for name in ours if name.startswith(first)]
        moved = sum(float((theirs[name].double() - ours[name].double()).square().sum()) for name in names)
        whole = sum(float(ours[name].double().square().sum()) for name in names)
        assert drifts[label] == pytest.approx(math.sqrt(moved / whole))


def test_a_decoder_of_the_merge_is_the_bases_at_alpha_0(
    whispers: tuple[str, str], few_clips: tuple[Path, ...], tmp_path: Path
) -> None:
    audio = [word for clip in few_clips for word in ("--probe", str(clip))]
    done = CliRunner().invoke(
        app, ["merge", *whispers, "--alpha", "0", "--cka", "--decoder", *audio, "-o", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    layers = json.loads((tmp_path / "out" / "similarity.json").read_text())["layers"]
    found = {layer["base_merged"]["cka"] for layer in layers if layer["stack"] == "decoder"}
    assert found == {1.0}


def test_a_model_without_a_text_decoder_is_told_apart(few_clips: tuple[Path, ...], tmp_path: Path) -> None:
    request = ProbeRequest(paths=few_clips, decoder=True)
    with pytest.raises(UsageError, match="'hubert' has no text decoder beside its encoder; leave out --decoder"):
        compare(*saved("Hubert", "Model", tmp_path), request=request)
    base, _ = saved("Whisper", "ForConditionalGeneration", tmp_path / "whisper")
    classifier = fine_tune(build("Whisper"), "Whisper", "ForAudioClassification")
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.raises(UsageError, match="classifier has no text decoder"):
        compare(base, str(tmp_path / "classifier"), request=request)


def test_a_sweep_does_not_take_decoders() -> None:
    with pytest.raises(UsageError, match="a sweep compares encoders only"):
        SweepRequest((), probe=ProbeRequest(decoder=True))
