"""Folders of models on the Hub: what belongs to a model comes along, and what is no model is explained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Pair, Run, Tiny
    from harness import HubServer

MERGE = ("alice/base", "alice/ft", "-o", "out")


def put(hub: HubServer, pair: Pair) -> None:
    hub.repo("alice/base", pair.base)
    hub.repo("alice/ft", pair.finetuned)


def test_code_and_files_in_folders_come_along(pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    config = json.loads((pair.base / "config.json").read_text())
    put(hub, pair)
    hub.commit(
        "alice/base",
        {
            "config.json": json.dumps(config | {"auto_map": {"AutoModel": "modeling_x.X"}}),
            "modeling_x.py": "class X: ...\n",
            "language_model/unigrams.txt": "a b\n",
            "onnx/model.onnx": "x",
        },
    )
    ran = spawn(*MERGE, env=hub.env())
    assert ran.code == 0, ran.err
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {"language_model/unigrams.txt", "modeling_x.py"} <= written
    assert "onnx/model.onnx" not in written
    merged = json.loads((tmp_path / "out/config.json").read_text())
    assert merged["auto_map"] == {"AutoModel": "modeling_x.X"}


def test_a_repository_of_checkpoints_names_the_last(pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    put(hub, pair)
    for step in (900, 1000):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        (tmp_path / f"run/checkpoint-{step}/model.safetensors").write_bytes(b"x")
    hub.repo("alice/run", tmp_path / "run")
    ran = spawn("alice/base", "alice/run", "-o", "out", env=hub.env())
    assert ran.code == 66
    assert "give the last one, alice/run:checkpoint-1000\n" in ran.err


def test_an_encoder_of_a_file_on_the_hub_is_picked_by_name(
    pair: Pair, tiny: Tiny, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    put(hub, pair)
    (tmp_path / "both").mkdir()
    models = {name: tiny.finetuned(tiny.read(pair.base), seed) for name, seed in (("teacher", 3), ("student", 4))}
    torch.save(
        {k: {n: torch.from_numpy(v) for n, v in m.items()} for k, m in models.items()}, tmp_path / "both/last.ckpt"
    )
    hub.repo("alice/both", tmp_path / "both")
    refused = spawn("alice/base", "alice/both:last.ckpt", "-o", "out", env=hub.env())
    assert (refused.code, "alice/both:last.ckpt#student" in refused.err) == (65, True)
    ran = spawn("alice/base", "alice/both:last.ckpt#student", "-o", "out", "--json", env=hub.env())
    assert ran.code == 0, ran.err
    assert ran.json["finetuned"][0]["reference"] == "alice/both:last.ckpt#student"
    tiny.write(tmp_path / "alone", models["student"])
    assert spawn(pair.base, "alone", "-o", "local").code == 0
    name = "encoder.layers.0.attention.k_proj.weight"
    assert (tiny.read(tmp_path / "out")[name] == tiny.read(tmp_path / "local")[name]).all()
