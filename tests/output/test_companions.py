"""The small files of an output: what its class, processor and code need, from whichever model has it, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build, fine_tune, transformers
from options import UNSYNCED
from safetensors.numpy import load_file, save_file

from speechft_merge import MergeOptions, Recipe, merge
from speechft_merge.errors import CheckpointError, MismatchError
from speechft_merge.plan.findings import Level

EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000}
KEEP = Recipe(keep_head=True)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build("Wav2Vec2").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    fine_tune(build("Wav2Vec2"), "Wav2Vec2", "ForCTC").save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def put(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(tmp_path: Path) -> set[str]:
    return {path.relative_to(out(tmp_path)).as_posix() for path in out(tmp_path).rglob("*") if path.is_file()}


# the feature extractor
def test_settings_in_the_fine_tunes_processor_come_along_where_the_base_has_none(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    put(tuned, processor_config={"processor_class": "Wav2Vec2Processor", "feature_extractor": EXTRACTOR})
    merge(base, tuned, out(tmp_path), options=UNSYNCED)
    loaded = transformers().AutoFeatureExtractor.from_pretrained(out(tmp_path))
    assert loaded.do_normalize
    assert "processor_config.json" not in names(tmp_path)


def test_two_files_of_opposite_settings_never_lie_side_by_side(base: Path, tuned: Path, tmp_path: Path) -> None:
    put(base, preprocessor_config=EXTRACTOR | {"do_normalize": False})
    put(tuned, processor_config={"feature_extractor": EXTRACTOR})
    merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED)
    assert "preprocessor_config.json" not in names(tmp_path)
    merge(base, tuned, tmp_path / "default", options=UNSYNCED)
    assert json.loads((tmp_path / "default/preprocessor_config.json").read_text())["do_normalize"] is False


def test_code_of_the_other_models_extractor_comes_with_its_settings(base: Path, tuned: Path, tmp_path: Path) -> None:
    put(tuned, preprocessor_config=EXTRACTOR | {"auto_map": {"AutoFeatureExtractor": "extraction_x.Own"}})
    (tuned / "extraction_x.py").write_text("from .filters_x import banks\n")
    (tuned / "filters_x.py").write_text("banks = 1\n")
    merge(base, tuned, out(tmp_path), options=UNSYNCED)
    assert {"extraction_x.py", "filters_x.py"} <= names(tmp_path)


def test_what_is_not_taken_from_the_other_model_is_not_read(base: Path, tuned: Path, tmp_path: Path) -> None:
    (tuned / "tokenizer.json").write_text(POINTER)
    (tuned / "tokenizer_config.json").write_text("no JSON")
    merge(base, tuned, out(tmp_path), options=UNSYNCED)
    assert "tokenizer.json" not in names(tmp_path)


# the tokenizer
def test_a_fine_tune_without_a_tokenizer_gets_the_bases_where_the_vocabularies_agree(tmp_path: Path) -> None:
    model = build("Whisper", "ForConditionalGeneration")
    model.save_pretrained(tmp_path / "base")
    put(tmp_path / "base", vocab={"a": 0}, tokenizer_config={}, normalizer={})
    fine_tune(model, "Whisper", "ForConditionalGeneration").save_pretrained(tmp_path / "tuned")
    result = merge(tmp_path / "base", tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    assert {"vocab.json", "tokenizer_config.json", "normalizer.json"} <= names(tmp_path)
    (finding,) = result.findings
    assert (finding.level, "both have 60 words" in finding.text) == (Level.NOTE, True)


def test_a_tokenizer_of_another_vocabulary_is_not_taken(tmp_path: Path) -> None:
    build("Wav2Vec2", "ForCTC", vocab_size=9).save_pretrained(tmp_path / "base")
    put(tmp_path / "base", vocab={"a": 0}, tokenizer_config={})
    build("Wav2Vec2", "ForCTC").save_pretrained(tmp_path / "tuned")
    result = merge(tmp_path / "base", tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    assert "vocab.json" not in names(tmp_path)
    assert any("of another vocabulary" in f.text and f.level is Level.WARNING for f in result.findings)


def test_a_processor_of_transformers_5_is_whole_again_beside_a_checkpoint_of_its_training(
    tuned: Path, tmp_path: Path
) -> None:
    put(tmp_path, v={word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"])})
    library = transformers()
    library.Wav2Vec2Processor(
        library.Wav2Vec2FeatureExtractor(do_normalize=False), library.Wav2Vec2CTCTokenizer(str(tmp_path / "v.json"))
    ).save_pretrained(tuned)
    checkpoint = fine_tune(build("Wav2Vec2"), "Wav2Vec2", "ForCTC", seed=3)
    checkpoint.save_pretrained(tmp_path / "checkpoint-9")
    merge(tuned, tmp_path / "checkpoint-9", out(tmp_path), KEEP, options=UNSYNCED)
    loaded = library.AutoProcessor.from_pretrained(out(tmp_path))
    assert loaded.feature_extractor.do_normalize is False
    assert loaded.tokenizer.convert_tokens_to_ids("g") == 11


def test_a_processor_whose_tokenizer_neither_model_has_is_warned_of(base: Path, tuned: Path, tmp_path: Path) -> None:
    put(tuned, preprocessor_config=EXTRACTOR | {"processor_class": "Wav2Vec2Processor"})
    (finding,) = merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED).findings
    assert (finding.level, "has no tokenizer, and neither has the base" in finding.text) == (Level.WARNING, True)


@pytest.mark.parametrize("kind", ["ForConditionalGeneration", "Model"])
def test_generation_settings_come_from_the_base_if_it_is_of_the_class(kind: str, tmp_path: Path) -> None:
    model = build("Whisper", "ForConditionalGeneration")
    model.save_pretrained(tmp_path / "base")
    fine_tune(model, "Whisper", kind).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned/generation_config.json").unlink(missing_ok=True)
    result = merge(tmp_path / "base", tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    generates = kind != "Model"
    assert ("generation_config.json" in names(tmp_path)) is generates
    assert [finding.level for finding in result.findings] == [Level.NOTE] * generates


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "spiece.model", "multilingual.tiktoken", "source.spm", "vocab.txt", "chat_template.jinja"],
)
def test_files_of_every_kind_of_tokenizer_come_along(name: str, base: Path, tuned: Path, tmp_path: Path) -> None:
    (tuned / name).write_text("x")
    merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED)
    assert (out(tmp_path) / name).read_text() == "x"


def test_what_a_configuration_names_comes_along(base: Path, tuned: Path, tmp_path: Path) -> None:
    named = {"vocab_file": "phones.lst", "more": ["./lists/tones.lst"], "weights": "model.safetensors"}
    put(tuned, tokenizer_config=named)
    (tuned / "lists").mkdir()
    for name in ("phones.lst", "lists/tones.lst", "lists/notes.txt", "notes.txt"):
        (tuned / name).write_text("a b")
    merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED)
    assert {"phones.lst", "lists/tones.lst", "tokenizer_config.json"} <= names(tmp_path)
    assert not {"notes.txt", "lists/notes.txt"} & names(tmp_path)


def test_a_configuration_cannot_name_what_an_output_has_of_its_own_or_would_be_loaded_beside_it(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    hostile = ["README.md", "speechft_merge.json", "model.safetensors.index.json", "adapter_model.bin", "old.bin"]
    config = json.loads((base / "config.json").read_text())
    put(base, config=config | {"named": [*hostile, "../outside.txt", str(tmp_path / "outside.txt")]})
    for name in hostile:
        (base / name).write_text("{}")
    for done in (False, True):
        result = merge(base, tuned, out(tmp_path), options=UNSYNCED)
        assert result.already_done is done
        assert [entry.file for entry in result.manifest.companions] == ["config.json"]
    assert names(tmp_path) == {"config.json", "model.safetensors", "README.md", "speechft_merge.json"}


def test_a_language_model_comes_along_in_its_folder_and_is_part_of_the_output(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    (tuned / "language_model").mkdir()
    for name in ("unigrams.txt", "attrs.json"):
        (tuned / "language_model" / name).write_text("{}")
    result = merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED)
    assert {"language_model/unigrams.txt", "language_model/attrs.json"} <= names(tmp_path)
    assert "language_model/attrs.json" in {entry.file for entry in result.manifest.companions}
    assert merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED).already_done
    (out(tmp_path) / "language_model/attrs.json").write_text("changed")
    again = MergeOptions(fsync=False, overwrite=True)
    assert not merge(base, tuned, out(tmp_path), KEEP, options=again).already_done
    assert (out(tmp_path) / "language_model/attrs.json").read_text() == "{}"
    (out(tmp_path) / "language_model/mine.txt").write_text("kept")
    with pytest.raises(OSError, match="files that no merge wrote"):
        merge(base, tuned, out(tmp_path), Recipe(alpha=0.5, keep_head=True), options=again)


def test_adapters_of_the_unmerged_weights_stay_behind_with_a_warning(base: Path, tuned: Path, tmp_path: Path) -> None:
    (base / "adapter.deu.safetensors").write_bytes(b"x")
    result = merge(base, tuned, out(tmp_path), options=UNSYNCED)
    assert "adapter.deu.safetensors" not in names(tmp_path)
    assert "adapter.deu.safetensors" in result.findings[0].text


# code
def test_code_that_auto_map_names_comes_along_with_what_it_imports(base: Path, tuned: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    put(base, config=config | {"auto_map": {"AutoModel": "modeling_x.XModel", "AutoProcessor": "other/repo--p.P"}})
    put(base, processor_config={"feature_extractor": EXTRACTOR | {"auto_map": {"AutoFeatureExtractor": "inner_x.F"}}})
    (base / "modeling_x.py").write_text("from .layers_x import L\nfrom . import helpers\nimport os\n")
    for name in ("layers_x", "helpers", "unused", "inner_x"):
        (base / f"{name}.py").write_text("raise SystemExit('executed')\n")
    result = merge(base, tuned, out(tmp_path), options=UNSYNCED)
    assert {"modeling_x.py", "layers_x.py", "helpers.py", "inner_x.py"} <= names(tmp_path)
    assert "unused.py" not in names(tmp_path)
    assert result.findings == ()


def test_a_class_of_ones_own_loads_from_the_output(base: Path, tuned: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    mapped = {"AutoConfig": "settings_x.XConfig", "AutoModel": "modeling_x.XModel"}
    put(base, config=config | {"model_type": "x", "architectures": ["XModel"], "auto_map": mapped})
    (base / "settings_x.py").write_text(
        "from transformers import Wav2Vec2Config\nclass XConfig(Wav2Vec2Config):\n    model_type = 'x'\n"
    )
    (base / "modeling_x.py").write_text(
        "from transformers import Wav2Vec2Model\nfrom .settings_x import XConfig\n"
        "class XModel(Wav2Vec2Model):\n    config_class = XConfig\n"
    )
    merge(base, tuned, out(tmp_path), options=UNSYNCED)
    loaded, info = transformers().AutoModel.from_pretrained(
        out(tmp_path), trust_remote_code=True, output_loading_info=True
    )
    assert type(loaded).__name__ == "XModel"
    assert {key: value for key, value in info.items() if value} == {}


def test_code_that_is_not_there_is_warned_of(base: Path, tuned: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    put(base, config=config | {"auto_map": {"AutoModel": "modeling_x.XModel"}})
    (finding,) = merge(base, tuned, out(tmp_path), options=UNSYNCED).findings
    assert (finding.level, "modeling_x.py" in finding.text) == (Level.WARNING, True)


# a config where one is missing
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "CTC": ("ForCTC", {"vocab_size": 20}),
    "classification": ("ForSequenceClassification", {"num_labels": 5, "classifier_proj_size": 24}),
    "classification of all layers": ("ForSequenceClassification", {"use_weighted_layer_sum": True}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_fine_tune_without_a_config_gets_one_of_its_class(task: str, base: Path, tmp_path: Path) -> None:
    kind, settings = TASKS[task]
    fine_tune(build("Wav2Vec2"), "Wav2Vec2", kind, **settings).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned/config.json").unlink()
    result = merge(base, tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    assert_loads(f"Wav2Vec2{kind}", tmp_path)
    assert result.findings[0].text.endswith(f"it is made from that of {base}")


@pytest.mark.parametrize("named", ["", "model.safetensors"], ids=["folder", "file"])
def test_a_base_without_a_config_gets_the_fine_tunes_for_its_class(
    named: str, base: Path, tuned: Path, tmp_path: Path
) -> None:
    (base / "config.json").unlink()
    (finding,) = merge(base / named, tuned, out(tmp_path), options=UNSYNCED).findings
    assert (finding.level, "it is made from that of" in finding.text) == (Level.NOTE, True)
    assert_loads("Wav2Vec2Model", tmp_path)


def assert_loads(name: str, tmp_path: Path) -> None:
    """By its class, with nothing to remark."""
    assert json.loads((out(tmp_path) / "config.json").read_text())["architectures"] == [name]
    _, info = getattr(transformers(), name).from_pretrained(out(tmp_path), output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}


UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "speaker verification": ("ForXVector", {}),
    "classification of frames": ("ForAudioFrameClassification", {}),
    "an adapter that the base has not": ("Model", {"add_adapter": True}),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_class_that_is_not_known_is_refused_without_a_config(what: str, base: Path, tmp_path: Path) -> None:
    kind, settings = UNKNOWN[what]
    loaded = transformers().Wav2Vec2Model.from_pretrained(base, **settings)
    fine_tune(loaded, "Wav2Vec2", kind, **settings).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned/config.json").unlink()
    with pytest.raises(MismatchError, match=r"has no config\.json"):
        merge(base, tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    assert not out(tmp_path).exists()


def test_where_no_model_has_a_config_there_is_a_warning(base: Path, tuned: Path, tmp_path: Path) -> None:
    """The merge can be loaded as the base can: by the user's own code."""
    for folder in (base, tuned):
        (folder / "config.json").unlink()
    (finding,) = merge(base, tuned, out(tmp_path), options=UNSYNCED).findings
    assert (finding.level, "so the merge has none" in finding.text) == (Level.WARNING, True)


def test_where_the_other_config_does_not_tell_the_class_a_folder_is_refused(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    (base / "config.json").unlink()
    weights = load_file(base / "model.safetensors") | {"my_head.weight": np.ones((4, 4), np.float32)}
    save_file(weights, base / "model.safetensors")
    with pytest.raises(MismatchError, match=r"has no config\.json.*name the file \(model\.safetensors\)"):
        merge(base, tuned, out(tmp_path), options=UNSYNCED)
    assert not out(tmp_path).exists()
    findings = merge(base / "model.safetensors", tuned, out(tmp_path), options=UNSYNCED).findings
    assert any("so the merge has none" in finding.text for finding in findings if finding.level is Level.WARNING)


# hostile files
def test_a_pointer_is_never_copied(base: Path, tuned: Path, tmp_path: Path) -> None:
    (base / "vocab.json").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"vocab\.json is a Git LFS pointer.*git lfs pull"):
        merge(base, tuned, out(tmp_path), options=UNSYNCED)


def test_files_without_end_are_not_read(base: Path, tuned: Path, tmp_path: Path) -> None:
    for number in range(257):
        (base / f"vocab{number}.txt").touch()
    with pytest.raises(CheckpointError, match="more than 256 small files"):
        merge(base, tuned, out(tmp_path), options=UNSYNCED)


def test_large_files_are_named_and_left(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechft_merge.checkpoints.companions.MAX_SIZE", 5000)
    monkeypatch.setattr("speechft_merge.checkpoints.companions.MAX_TOTAL", 9000)
    (base / "language_model").mkdir()
    for name, size in (("language_model/3gram.arpa", 6000), ("vocab.txt", 4000), ("vocab2.txt", 4900)):
        (base / name).write_bytes(b"x" * size)
    found = merge(base, tuned, out(tmp_path), options=UNSYNCED).findings
    left = [finding.text.partition(" ")[0] for finding in found if finding.level is Level.WARNING]
    assert left == ["vocab2.txt", "language_model/3gram.arpa"]
    assert "vocab.txt" in names(tmp_path)


def test_a_link_that_leads_out_is_never_followed(base: Path, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (base / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="link that leads out of the model's folder"):
        merge(base, tuned, out(tmp_path), options=UNSYNCED)


def test_the_links_of_the_hubs_cache_are_no_such_links(base: Path, tuned: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(base.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    merge(snapshot, tuned, out(tmp_path), options=UNSYNCED)
    assert "config.json" in names(tmp_path)
