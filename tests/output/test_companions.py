"""The small files of an output: what its class, processor and code need, from whichever model has it, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import build, fine_tune, transformers
from options import UNSYNCED

from speechft_merge import MergeOptions, Recipe, merge
from speechft_merge.errors import CheckpointError, MismatchError
from speechft_merge.plan.findings import Level

EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000}
KEEP = Recipe(keep_head=True)


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


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "spiece.model", "multilingual.tiktoken", "source.spm", "vocab.txt", "chat_template.jinja"],
)
def test_files_of_every_kind_of_tokenizer_come_along(name: str, base: Path, tuned: Path, tmp_path: Path) -> None:
    (tuned / name).write_text("x")
    merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED)
    assert (out(tmp_path) / name).read_text() == "x"


def test_what_a_configuration_names_comes_along(base: Path, tuned: Path, tmp_path: Path) -> None:
    put(tuned, tokenizer_config={"vocab_file": "phones.lst", "weights": "model.safetensors"})
    (tuned / "phones.lst").write_text("a b")
    (tuned / "notes.txt").write_text("not named")
    merge(base, tuned, out(tmp_path), KEEP, options=UNSYNCED)
    assert {"phones.lst", "tokenizer_config.json"} <= names(tmp_path)
    assert "notes.txt" not in names(tmp_path)


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
    (base / "modeling_x.py").write_text("from .layers_x import L\nfrom . import helpers\nimport os\n")
    for name in ("layers_x", "helpers", "unused"):
        (base / f"{name}.py").write_text("raise SystemExit('executed')\n")
    result = merge(base, tuned, out(tmp_path), options=UNSYNCED)
    assert {"modeling_x.py", "layers_x.py", "helpers.py"} <= names(tmp_path)
    assert "unused.py" not in names(tmp_path)
    assert result.findings == ()


def test_code_that_is_not_there_is_warned_of(base: Path, tuned: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    put(base, config=config | {"auto_map": {"AutoModel": "modeling_x.XModel"}})
    (finding,) = merge(base, tuned, out(tmp_path), options=UNSYNCED).findings
    assert (finding.level, "modeling_x.py" in finding.text) == (Level.WARNING, True)


# a config of the fine-tune's class
@pytest.mark.parametrize("kind", ["ForCTC", "ForSequenceClassification"])
def test_a_fine_tune_without_a_config_gets_one_of_its_class(kind: str, base: Path, tmp_path: Path) -> None:
    tuned = fine_tune(build("Wav2Vec2"), "Wav2Vec2", kind, vocab_size=20)
    tuned.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned/config.json").unlink()
    result = merge(base, tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    _, info = getattr(transformers(), f"Wav2Vec2{kind}").from_pretrained(out(tmp_path), output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    assert result.findings[0].text.endswith(f"it is made from that of {base}")


def test_a_class_that_is_not_known_is_refused_without_a_config(base: Path, tmp_path: Path) -> None:
    fine_tune(build("Wav2Vec2"), "Wav2Vec2", "ForXVector").save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned/config.json").unlink()
    with pytest.raises(MismatchError, match=r"has no config\.json"):
        merge(base, tmp_path / "tuned", out(tmp_path), KEEP, options=UNSYNCED)
    assert not out(tmp_path).exists()


# hostile files
def test_a_pointer_is_never_copied(base: Path, tuned: Path, tmp_path: Path) -> None:
    (base / "vocab.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json is a Git LFS pointer.*git lfs pull"):
        merge(base, tuned, out(tmp_path), options=UNSYNCED)


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
