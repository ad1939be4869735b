"""A push into a repository that holds something: after it the merge is loaded, and what became of the rest is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from harness import STRANGER, HubServer
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from conftest import Pair, Run, SavePair

REPO = "alice/used"
OURS = "\nMade by speechft-merge:\n"
OLD = {
    "README.md": "# My model",
    "adapter_config.json": "{}",
    "adapter_model.safetensors": b"old",
    "model.fp16.safetensors": b"old",
    "model-00001-of-00002.safetensors": b"old",
    "model.safetensors.index.fp32.json": "{}",
    "tf_model.h5": b"old",
    "vocab.json": "{}",
    "onnx/model.onnx": b"old",
    "last.ckpt": b"old",
    "training_args.bin": b"old",
    "notes.md": "mine",
}
GONE = {
    "adapter_config.json", "adapter_model.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors",
    "model.safetensors.index.fp32.json", "tf_model.h5", "vocab.json",
}  # fmt: skip
STAYS = {"onnx/model.onnx", "last.ckpt", "training_args.bin", "notes.md"}


@pytest.fixture
def used(hub: HubServer) -> str:
    """A repository with a model, in whatever forms models have, and with files of other kinds."""
    hub.repo(REPO, OLD)
    return REPO


def notes(err: str) -> list[str]:
    return [line.removeprefix("speechft-merge: note: ") for line in err.splitlines()]


@pytest.mark.parametrize("way", ["merge", "push"])
def test_what_would_be_loaded_instead_goes_in_the_same_commit_and_the_rest_is_listed(
    way: str, pair: Pair, hub: HubServer, used: str, spawn: Run
) -> None:
    if way == "merge":
        ran = spawn(*pair.args, "--push-to-hub", used, "--json", env=hub.env())
        told = ran.json["pushed"]
        assert set(notes(ran.err)) <= set(ran.json["warnings"])
    else:
        assert spawn(*pair.args, "-o", "out").code == 0
        ran = spawn("push", "out", used, "--json", env=hub.env())
        told = ran.json
    assert ran.code == 0, ran.err
    stored = hub.stored(used)
    assert stored.titles == ["Merge by speechft-merge", "upload", "initial commit"]
    assert not GONE & stored.files.keys()
    assert stored.files.keys() > STAYS
    assert (set(told["deleted"]), set(told["kept"]), told["replaced"]) == (GONE, STAYS, ["README.md"])
    deleted, weights, card = notes(ran.err)
    assert all(name in deleted for name in GONE)
    assert "onnx/model.onnx" in weights
    assert "last.ckpt" in weights
    assert "training_args" not in weights
    assert f"README.md of {used}" in card


def test_the_table_and_quiet_tell_of_it_too(pair: Pair, hub: HubServer, used: str, spawn: Run) -> None:
    assert spawn(*pair.args, "-o", "out", env=hub.env()).code == 0
    ran = spawn("push", "out", used, env=hub.env())
    assert [line.split(f" in {used}: ")[0] for line in ran.lines[:-1]] == ["replaced", "deleted", "kept"]
    assert "notes.md" in ran.lines[2]
    hub.repo(used, OLD)
    quiet = spawn("push", "out", used, "-q", env=hub.env())
    assert len(quiet.lines) == 1
    assert notes(quiet.err) == notes(ran.err)


def test_a_pull_request_deletes_the_same_and_main_stays(pair: Pair, hub: HubServer, used: str, spawn: Run) -> None:
    before = hub.stored(used).sha
    ran = spawn(*pair.args, "--push-to-hub", used, "--create-pr", env=hub.env(STRANGER))
    assert ran.code == 0, ran.err
    assert len(notes(ran.err)) == 3
    assert hub.stored(used).sha == before
    assert not GONE & hub.stored(used, "refs/pr/1").files.keys()
    assert hub.stored(used, "refs/pr/1").files.keys() > STAYS


@pytest.mark.parametrize(("text", "said"), [("# My model", True), (f"---\n---\n# M{OURS}", False)])
def test_a_readme_is_somebodys_if_no_merge_wrote_it(
    text: str, said: bool, pair: Pair, hub: HubServer, spawn: Run
) -> None:
    hub.repo(REPO, {"README.md": text})
    ran = spawn(*pair.args, "--push-to-hub", REPO, "-q", env=hub.env())
    assert ran.code == 0, ran.err
    assert ("README.md" in ran.err) == said


def test_a_readme_that_cannot_be_read_is_somebodys(pair: Pair, hub: HubServer, used: str, spawn: Run) -> None:
    hub.fault("GET /alice/used/resolve/", times=100, status=403)
    ran = spawn(*pair.args, "--push-to-hub", used, "-q", env=hub.env())
    assert ran.code == 0, ran.err
    assert "README.md of alice/used, which no merge wrote" in ran.err


def test_the_second_push_of_a_merge_has_nothing_to_note(pair: Pair, hub: HubServer, spawn: Run) -> None:
    hub.repo(REPO, {})
    for _ in range(2):
        ran = spawn(*pair.args, "-o", "out", "--push-to-hub", REPO, "-q", env=hub.env())
        assert ran.code == 0, ran.err
        assert "note:" not in ran.err


def test_subfolders_are_pushed_and_links_that_lead_out_are_not(
    pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    hub.delete(REPO)
    assert spawn(*pair.args, "-o", "out").code == 0
    (tmp_path / "out/language_model").mkdir()
    (tmp_path / "out/language_model/attrs.json").write_text("{}")
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out/link").symlink_to(tmp_path / "secret")
    ran = spawn("push", "out", REPO, env=hub.env())
    assert (ran.code, ran.out) == (65, "")
    assert "out/link is a link that leads out of the folder" in ran.err
    assert not hub.log("POST /api/repos/create")
    (tmp_path / "out/link").unlink()
    assert spawn("push", "out", REPO, env=hub.env()).code == 0
    assert "language_model/attrs.json" in hub.stored(REPO).files


def test_no_path_of_this_machine_is_pushed(pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    hub.delete(REPO)
    (tmp_path / "recipe.yaml").write_text("alpha: 0.5")
    shutil.copytree(pair.base, tmp_path / "frozen")  # for a warning
    options = ["-o", tmp_path / "out", f"--recipe={tmp_path}/recipe.yaml"]
    ran = spawn(pair.base, tmp_path / "frozen", *options, "--push-to-hub", REPO, env=hub.env())
    assert ran.code == 0, ran.err
    for name, path in hub.stored(REPO).files.items():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, name
        assert str(pair.base.parent).encode() not in content, name
    told = json.loads(hub.stored(REPO).files["speechft_merge.json"].read_text())
    assert [told["base"]["reference"], told["finetuned"][0]["reference"]] == ["base", "frozen"]
    assert json.loads((tmp_path / "out/speechft_merge.json").read_text())["base"]["reference"] == str(pair.base)


def test_a_comparison_that_fails_does_not_hold_up_the_push(hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    hub.delete(REPO)
    (tmp_path / "clip.wav").write_text("no audio")
    pair = Path("examples/pair").resolve()
    words = (pair / "base", pair / "finetuned", "--cka", "--probe", "clip.wav", "--push-to-hub", REPO)
    ran = spawn(*words, "--json", env=hub.env())
    assert ran.code == 69, ran.err
    assert ran.json["similarity"] is None
    assert ran.json["pushed"]["url"].endswith(hub.stored(REPO).sha)
    hub.fault("POST .*/commit/", times=100, status=500)
    failed = spawn(*words, "--alpha", "0.5", env=hub.env())
    assert failed.code == 75
    assert "hint: merged, but the features were not compared" in failed.err


def test_one_model_of_the_hub_under_two_names_is_given_twice(pair: Pair, hub: HubServer, spawn: Run) -> None:
    sha = hub.repo("alice/base", pair.base)
    for other in ("alice/base@main", f"alice/base@{sha}", "alice/base:model.safetensors", "hf://alice/base"):
        ran = spawn("alice/base", other, "-o", "out", env=hub.env())
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert f"alice/base and {other} are the same model" in ran.err


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_transformers_loads_the_merge_and_not_the_adapter_that_was_there(
    save_pair: SavePair, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    """With peft installed from_pretrained looks for adapter_config.json first (transformers issue 43746)."""
    peft = pytest.importorskip("peft")
    from models import transformers

    base, finetuned = save_pair("Whisper", "ForConditionalGeneration", "ForConditionalGeneration")
    whisper: Any = transformers().WhisperForConditionalGeneration
    lora = peft.get_peft_model(whisper.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    hub.repo(REPO, tmp_path / "lora")
    ran = spawn(base, finetuned, "-o", "out", "--alpha", "1", "--push-to-hub", REPO, env=hub.env())
    assert ran.code == 0, ran.err
    for name, path in hub.stored(REPO).files.items():
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copyfile(path, tmp_path / "copy" / name)
    loaded = whisper.from_pretrained(tmp_path / "copy").state_dict()
    for name, values in load_file(f"{finetuned}/model.safetensors").items():
        np.testing.assert_array_equal(loaded[name].numpy(), values, err_msg=name)
