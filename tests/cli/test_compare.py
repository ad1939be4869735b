"""`speechft-merge compare`, and `--cka` after a merge, as a shell runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from speechft_merge.similarity.probe import BUILT_IN

if TYPE_CHECKING:
    from conftest import Run, SavePair, Snapshot

PAIR = [str(Path("examples/pair/base").resolve()), str(Path("examples/pair/finetuned").resolve())]
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
"""With a norm after the blocks."""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name five short clips."""
    folder = tmp_path_factory.mktemp("probe")
    for path in sorted(BUILT_IN.glob("*.flac"))[3:8]:
        samples, rate = soundfile.read(path)
        soundfile.write(folder / path.name, samples[: rate // 2], rate)
    return ["--probe", str(folder)]


def test_a_table_and_two_sentences(run: Run, probe: list[str]) -> None:
    ran = run("compare", *PAIR, *probe)
    assert ran.code == 0
    assert "base vs fine-tuned" in ran.lines[0]
    assert [line.split()[0] for line in ran.lines[2:10]] == ["input", *"012345", "mean"]
    assert "the input of the first block and of each block's output" in ran.out
    assert "of the way back to the base" in ran.out
    assert "5 clips of 5 groups (by file)" in ran.out
    assert "± is half a 95 % interval over the groups" in ran.out
    assert "with fewer than 6 the figures are rough" in ran.err


def test_json_is_one_document_and_quiet_is_one_line(run: Run, probe: list[str]) -> None:
    document = run("compare", *PAIR, *probe, "--json").json
    assert document["models"]["merged"] == "merged in memory, alpha 0.25"
    quiet = run("compare", *PAIR, *probe, "-q")
    means = [document["mean"][pair]["cka"] for pair in ("base_finetuned", "base_merged", "finetuned_merged")]
    assert [float(word) for word in quiet.out.split()] == pytest.approx(means, abs=1e-5)


def test_files_that_were_asked_for_are_written(run: Run, probe: list[str], tmp_path: Path) -> None:
    files = ["--plot", "new/lines.svg", "--heatmap", "grid.png", "--csv", "figures.csv", "--null"]
    ran = run("compare", *PAIR, *probe, *files, "-v")
    assert ran.code == 0
    assert "floor" in ran.lines[0]
    assert "procrustes" in ran.out
    assert "statistics" in ran.err  # seconds: stdout is the same from run to run
    assert "statistics" not in ran.out
    assert (tmp_path / "new/lines.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "figures.csv").read_text().splitlines()) == 1 + 7 * 3


def test_the_probe_may_be_a_list_on_stdin(spawn: Run, probe: list[str], tmp_path: Path) -> None:
    names = "\n".join(str(path) for path in sorted(Path(probe[1]).iterdir())) + "\n"
    listed = spawn("compare", *PAIR, "--probe", "-", "--json", input=names)
    named = spawn("compare", *PAIR, *probe, "--json")
    assert listed.code == named.code == 0
    assert listed.json["probe"]["sha256"] == named.json["probe"]["sha256"]


def test_a_recipe_that_names_the_models_is_compared_as_it_is_merged(run: Run, probe: list[str], tmp_path: Path) -> None:
    models = f"base_model: {PAIR[0]}\nmodels:\n  - model: {PAIR[1]}\n    parameters: {{weight: 0.4}}\n"
    (tmp_path / "merge.yml").write_text(f"merge_method: task_arithmetic\n{models}")
    ours = run("compare", *PAIR, *probe, "--alpha", "0.4", "--json").json
    ran = run("compare", "--recipe", "merge.yml", *probe, "--json")
    assert (ran.code, ran.json["mean"]) == (0, ours["mean"])


@pytest.mark.parametrize(
    ("recipe", "caption"),
    [({"alpha": 0.25, "weights": []}, "merged at alpha 0.25"), ({"alpha": "a lot"}, "merged: out"), ({}, "alpha 0.25")],
)
def test_a_merge_is_compared_whatever_its_manifest_says_of_its_recipe(
    recipe: dict[str, Any], caption: str, run: Run, probe: list[str], tmp_path: Path
) -> None:
    run("merge", *PAIR, "-o", "out")
    manifest = tmp_path / "out/speechft_merge.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"recipe": recipe}))
    ran = run("compare", *PAIR, "out", *probe, "--plot", "cka.svg")
    assert ran.code == 0, ran.err
    assert caption in " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "cka.svg").read_text()))


def test_alphas_are_those_of_the_merge_command(run: Run, probe: list[str]) -> None:
    nothing = run("compare", *PAIR, *probe, "--json", "--alpha", "0").json
    assert {layer["base_merged"]["cka"] for layer in nothing["layers"]} == {1.0}
    upper = run("compare", *PAIR, *probe, "--json", "--alpha", "0", "--layer-alpha", "3-5=0.5").json
    found = {layer["layer"]: layer["base_merged"]["cka"] for layer in upper["layers"]}
    assert [found[layer] for layer in (None, 0, 1, 2)] == [1, 1, 1, 1]
    assert max(found[layer] for layer in (3, 4, 5)) < 1


@pytest.mark.parametrize(
    ("config", "moved"),
    [(None, ""), ({}, "encoder.layers.1."), (LARGE, "encoder.layer_norm.")],
    ids=["shipped pair", "last block", "final norm"],
)
def test_the_layer_that_the_closing_sentence_names_is_the_first_that_layer_alpha_changes(
    config: dict[str, Any] | None, moved: str, run: Run, probe: list[str], save_pair: SavePair, tmp_path: Path
) -> None:
    pair = PAIR if config is None else move_weights(save_pair("Hubert", **config)[0], moved, tmp_path / "moved")
    alpha = [*pair, *probe, "--alpha", "1"]
    named = re.search(r"most in layer (\S+): there", run("compare", *alpha).out)
    assert named is not None
    rule = ["--layer-alpha", f"{named[1]}=0"]
    before, after = (run("compare", *alpha, *more, "--json").json["layers"] for more in ([], rule))
    changed = [row for row, other in zip(before, after, strict=True) if row != other]
    assert named[1] == str(changed[0]["part"] if changed[0]["layer"] is None else changed[0]["layer"])
    assert run(*pair, "--alpha", "1", *rule, "-o", "out").code == 0
    base, merged = (load_file(f"{folder}/model.safetensors") for folder in (pair[0], tmp_path / "out"))
    same = {name for name, values in base.items() if values.tobytes() == merged[name].tobytes()}
    stem = "encoder.layer_norm." if named[1] == "final_norm" else f"encoder.layers.{named[1]}."
    assert {name for name in base if name.startswith(stem)} <= same


def move_weights(base: str, stem: str, folder: Path) -> list[str]:
    """The base, and a fine-tune in which only the weights under a stem differ."""
    shutil.copytree(base, folder)
    random = np.random.default_rng(0)
    weights = {
        name: values + random.standard_normal(values.shape, np.float32) if name.startswith(stem) else values
        for name, values in load_file(f"{base}/model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return [base, str(folder)]


def test_a_block_has_one_drift_and_one_name_in_the_table_of_the_merge_and_in_that_of_its_features(
    run: Run, probe: list[str], save_pair: SavePair
) -> None:
    for number, pair in enumerate((PAIR, save_pair("Hubert", **LARGE), save_pair("Whisper"))):
        ran = run(*pair, "--cka", *probe, "--json", "-o", f"out{number}")
        assert ran.code == 0, ran.err
        document = ran.json
        keys = ("layer", "part", "stack", "drift")
        merged = [tuple(row[key] for key in keys) for row in document["layers"]]
        compared = [tuple(row[key] for key in keys) for row in document["similarity"]["layers"]]
        assert compared[0][:3] == (None, "input", "encoder")
        assert len(compared) > 3
        assert {*compared[1:]} <= {*merged}


def test_cka_comes_after_the_merge_and_stays_beside_it(run: Run, probe: list[str], tmp_path: Path) -> None:
    ran = run(*PAIR, "--cka", *probe, "-o", "out")
    assert ran.code == 0
    assert ran.lines[-1] == "out"
    assert "of the way back to the base" in ran.out
    assert json.loads((tmp_path / "out/similarity.json").read_text())["utterances"] == 5
    card = (tmp_path / "out/README.md").read_text()
    assert re.search(r"!\[CKA by layer\. Base vs fine-tuned: .*\]\(similarity\.png\)", card)
    assert "CKA of the merge at alpha 0.25, layer by layer" in card
    plain = run(*PAIR, "-o", "plain")
    assert plain.code == 0
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_a_merge_with_a_comparison_beside_it_is_still_done_and_may_be_replaced(
    run: Run, probe: list[str], tmp_path: Path
) -> None:
    assert run(*PAIR, "--cka", *probe, "-o", "out").code == 0
    assert "already done" in run(*PAIR, "-o", "out").out
    assert run(*PAIR, "--alpha", "0.5", "-o", "out", "--overwrite").code == 0
    assert not (tmp_path / "out/similarity.json").exists()


def test_verbosely_a_merge_says_that_it_was_verified_and_what_each_model_took(run: Run, probe: list[str]) -> None:
    ran = run("merge", *PAIR, *probe, "--cka", "--verify", "-v", "-o", "out")
    assert "verified: every byte is what the merge makes" in ran.err
    assert re.search(r"base \d+\.\d s, finetuned \d+\.\d s", ran.err)


def test_the_json_of_a_merge_has_the_comparison_in_it(run: Run, probe: list[str]) -> None:
    document = run(*PAIR, "--cka", *probe, "--json", "-o", "out").json
    assert document["similarity"]["layers"][-1]["base_merged"]["cka"] > 0.5
    assert document["output"] == "out"


def test_a_model_that_cannot_be_run_is_merged_all_the_same(
    run: Run, save_pair: SavePair, probe: list[str], tmp_path: Path
) -> None:
    pair = save_pair("Hubert", "ForCTC")
    base = tmp_path / "strange"
    base.mkdir()
    for path in Path(pair[0]).iterdir():
        text = path.read_bytes()
        (base / path.name).write_bytes(text.replace(b'"hubert"', b'"hubble"') if path.suffix == ".json" else text)
    ran = run(base, pair[1], "--cka", *probe, "-o", "out", "-q")
    assert (ran.code, ran.out) == (69, "out\n")
    assert "error: merged, but the features were not compared: " in ran.err
    assert "does not know its model_type 'hubble'" in ran.err
    assert (tmp_path / "out/model.safetensors").exists()
    assert run(base, pair[1], "-o", "out", "-q").code == 0


def test_a_figure_that_cannot_be_written_is_told_after_the_result(run: Run, probe: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = run(*PAIR, "--cka", *probe, "-o", "out", "--plot", "file/plot.png", "-q")
    assert (ran.code, ran.out) == (73, "out\n")
    assert "cannot write" in ran.err
    assert (tmp_path / "out/similarity.json").exists()


def test_whatever_goes_wrong_in_a_comparison_the_merge_is_told_of(
    run: Run, probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("of a kind that nobody foresaw")

    monkeypatch.setattr("speechft_merge.similarity.beside_output.draw_lines", fail)
    ran = run(*PAIR, "--cka", *probe, "-o", "out", "--json")
    problem = "merged, but the features were not compared: ZeroDivisionError: of a kind that nobody foresaw"
    assert ran.code == 69
    assert (ran.json["output"], ran.json["similarity"], ran.json["problem"]) == ("out", None, problem)
    told = json.loads(ran.err.splitlines()[-1])
    assert (told["error"], told["exit_code"]) == (problem, 69)


def test_a_clip_that_is_no_audio_leaves_a_merge_and_exit_code_69(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_text("no audio")
    ran = run(*PAIR, "--cka", "--probe", "clip.wav", "-o", "out")
    assert (ran.code, ran.lines[-1]) == (69, "out")
    assert ran.err.count("merged, but the features were not compared") == 1
    again = run(*PAIR, "-o", "out", "--json")
    assert (again.code, again.json["already_done"]) == (0, True)
    assert "similarity" not in again.json


def test_a_merge_that_is_interrupted_while_features_are_compared_keeps_the_code_of_the_signal(
    run: Run, probe: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "speechft_merge.similarity.beside_output.draw_lines", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    ran = run(*PAIR, "--cka", *probe, "-o", "out")
    assert ran.code == 128 + signal.SIGTERM
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["compare", PAIR[0]], 2, "takes a base, a fine-tune and perhaps their merge; got 1"),
        (["compare", *PAIR, "--probe", "nowhere"], 66, "there is no audio file or folder nowhere"),
        (["compare", *PAIR, "--plot", "figure.bmp"], 2, "end its name in one of"),
        (["compare", *PAIR, "--estimator", "best"], 2, "use one of group, frame, biased"),
        (["compare", *PAIR, "--probe-seconds", "nan"], 2, "a probe cannot be of"),
        (["compare", *PAIR, "--memory", "much"], 2, "is not a size"),
        ([*PAIR, "--cka", "--probe", "nowhere", "-o", "out"], 66, "there is no audio file or folder nowhere"),
        ([*PAIR, "--cka", "--plot", "figure.bmp", "-o", "out"], 2, "end its name in one of"),
        ([*PAIR, "--cka", "--probe-seconds", "0", "-o", "out"], 2, "a probe cannot be of"),
        ([*PAIR, "--cka", "--device", "nowhere", "-o", "out"], 2, "device 'nowhere' is unknown"),
    ],
)
def test_invalid_arguments_are_reported_before_anything_is_done(
    args: list[str], code: int, said: str, run: Run, tmp_path: Path, snapshot: Snapshot
) -> None:
    ran = run(*args)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("package", ["transformers", "soundfile", "matplotlib"])
def test_a_missing_package_is_an_error_and_a_hint_that_says_what_to_install(
    package: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    ran = run(*PAIR, "--cka", "-o", "out")
    assert (ran.code, ran.out) == (2, "")
    error, hint = ran.err.splitlines()
    assert error == f"speechft-merge: error: {package} is not installed"
    assert f"pip install {package}" in hint
    assert "'.[cka]'" in hint
    assert not (tmp_path / "out").exists()
