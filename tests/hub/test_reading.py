"""Models on the Hub are merged as if they lay here, and no more of them is fetched than is needed."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import torch
from harness import READER, WRITER, HubServer
from options import UNSYNCED

from speechft_merge import merging

if TYPE_CHECKING:
    from conftest import Pair, Run, Snapshot, Tiny, Weights

SINGLE = "model.safetensors"
SMALL = 4 << 20
MERGE = ("alice/base", "alice/ft", "-o", "out")
CARD = "---\nlicense: mit\n---\n# A model\n"


@pytest.fixture(scope="session")
def large(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Files of 9 MB, of which only ranges are fetched."""
    base = tiny.weights(hidden=256, layers=3)
    return tiny.write_pair(tmp_path_factory.mktemp("large"), base, tiny.ctc(tiny.finetuned(base)))


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., bytes]:
    """The weights that merging local folders gives."""

    def merged(base: Path, finetuned: Path, **arguments: Any) -> bytes:
        output = tmp_path / "local" / "out"
        merging.merge(str(base), str(finetuned), output, **arguments, options=UNSYNCED)
        content = (output / SINGLE).read_bytes()
        shutil.rmtree(output.parent)
        return content

    return merged


def put(hub: HubServer, pair: Pair, **options: Any) -> tuple[str, str]:
    """The pair as alice/base and alice/ft; their commits."""
    return hub.repo("alice/base", pair.base, **options), hub.repo("alice/ft", pair.finetuned, **options)


def sent(hub: HubServer, match: str = "GET .*/cdn/") -> int:
    return sum(entry.sent for entry in hub.log(match))


def fill_cache(hub: HubServer, *repos: str) -> None:
    """What other programs do before."""
    code = "import sys, huggingface_hub as h; [h.snapshot_download(repo) for repo in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *repos], env=os.environ | hub.env(), check=True)


# containers


def to_torch(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in weights.items()}


def torch_file(weights: Weights, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(to_torch(weights), file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def old_zip(weights: Weights) -> bytes:
    """As torch 1.6 wrote it: no .format_version, every record with a descriptor behind its data."""

    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    file = Unseekable()
    with (
        zipfile.ZipFile(io.BytesIO(torch_file(weights))) as new,
        zipfile.ZipFile(file, "w") as old,
    ):
        records = {name.partition("/")[2]: new.read(name) for name in new.namelist()}
        data = [name for name in records if name.startswith("data/")]
        for name in ("data.pkl", *data, "version"):
            entry = zipfile.ZipInfo(f"archive/{name}")
            begins = old.start_dir + 30 + len(entry.filename) + 4
            padding = -begins % 64
            entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            with old.open(entry, "w") as record:
                record.write(records[name])
    return file.getvalue()


def shards(weights: Weights, tiny: Tiny, folder: Path) -> dict[str, Path | str]:
    """Two files and their index."""
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    files: dict[str, Path | str] = {}
    for number, (file, half) in enumerate(halves.items()):
        files[file] = tiny.write(folder / str(number), {name: weights[name] for name in half}) / SINGLE
    weight_map = {name: file for file, half in halves.items() for name in half}
    return files | {f"{SINGLE}.index.json": json.dumps({"metadata": {}, "weight_map": weight_map})}


CONTAINERS: dict[str, Callable[[Weights], bytes]] = {
    "torch zip": torch_file,
    "old torch zip": old_zip,
    "torch legacy": lambda weights: torch_file(weights, legacy=True),
}


def test_the_old_layout_is_what_torch_reads(pair: Pair, tiny: Tiny) -> None:
    weights = tiny.read(pair.base)
    found = torch.load(io.BytesIO(old_zip(weights)), weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in to_torch(weights).items())


@pytest.mark.parametrize(
    ("container", "size"),
    [
        *((container, "large") for container in ("safetensors", "sharded safetensors", *CONTAINERS)),
        ("safetensors", "small"),
        ("old torch zip", "small"),
    ],
)
def test_a_merge_of_remote_models_is_that_of_local_ones(
    container: str, size: str, pair: Pair, large: Pair, tiny: Tiny, hub: HubServer, spawn: Run, tmp_path: Path,
    merged: Callable[..., bytes],
) -> None:  # fmt: skip
    chosen = pair if size == "small" else large
    put(hub, chosen)
    if container != "safetensors":
        weights = tiny.read(chosen.finetuned)
        files: dict[str, Any] = {"config.json": chosen.finetuned / "config.json"}
        if container == "sharded safetensors":
            files |= shards(weights, tiny, tmp_path / "shards")
        else:
            files["pytorch_model.bin"] = CONTAINERS[container](weights)
        hub.repo("alice/ft", files)
    ran = spawn(*MERGE, env=hub.env())
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(chosen.base, chosen.finetuned)
    assert (tmp_path / "out" / "config.json").read_bytes() == (chosen.base / "config.json").read_bytes()
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_views_into_one_storage_are_read_as_they_are_here(
    large: Pair, tiny: Tiny, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    """One matrix of a pickled file is a part of another."""
    for name, folder in (("base", large.base), ("ft", large.finetuned)):
        weights = to_torch(tiny.read(folder))
        prefix = "hubert." if name == "ft" else ""
        whole = weights[f"{prefix}encoder.layers.1.feed_forward.output_dense.weight"]
        weights[f"{prefix}encoder.layers.1.attention.k_proj.weight"] = whole.view(-1)[1000 : 1000 + 256 * 256].view(
            256, 256
        )
        (tmp_path / name).mkdir()
        torch.save(weights, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "hubert"}))
        hub.repo(f"alice/{name}", tmp_path / name)
    assert spawn("base", "ft", "-o", "local", "--format", "safetensors").code == 0
    ran = spawn(*MERGE, "--format", "safetensors", env=hub.env())
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / "local" / SINGLE).read_bytes()


# references


@pytest.fixture
def versions(hub: HubServer, pair: Pair, tiny: Tiny, tmp_path: Path) -> str:
    """alice/base whose main branch has other weights at its top; the commit that has the right ones."""
    top = {path.name: path for path in pair.base.iterdir()}
    sub = {f"sub/{name}": path for name, path in top.items()}
    sha = hub.repo("alice/base", {**top, **sub}, branches=["dev", "feature/x"], tags=["v1.0"])
    lines = [{"key": "header", "value": {"summary": "a proposal"}}]
    body = "\n".join(map(json.dumps, lines)).encode()
    parts = urlsplit(hub.endpoint)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    connection.request(
        "POST", "/api/models/alice/base/commit/main?create_pr=1", body, {"Authorization": f"Bearer {WRITER}"}
    )
    assert connection.getresponse().status == 200
    connection.close()
    tiny.write(tmp_path / "decoy", tiny.weights(seed=7))
    hub.commit("alice/base", {SINGLE: tmp_path / "decoy" / SINGLE}, title="other weights")
    hub.repo("alice/ft", pair.finetuned)
    return sha


@pytest.mark.parametrize(
    "reference",
    [
        "alice/base@dev",
        "alice/base@feature/x",
        "alice/base@v1.0",
        "alice/base@{sha}",
        "alice/base@refs/pr/1",
        "alice/base@dev:sub",
        "alice/base:sub/",
        "alice/base:sub/model.safetensors",
        "hf://alice/base@feature%2Fx/model.safetensors",
        "hf://alice/base@refs/pr/1/sub/model.safetensors",
    ],
)
def test_revisions_and_paths_are_followed(
    reference: str, versions: str, pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    reference = reference.format(sha=versions)
    ran = spawn(reference, "alice/ft", "-o", "out", env=hub.env())
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(pair.base, pair.finetuned)
    base = json.loads((tmp_path / "out" / "speechft_merge.json").read_text())["base"]
    revision = "refs/pr/1" if "refs/pr" in reference else "main" if "@" not in reference else None
    commit = hub.stored("alice/base", revision or versions).sha
    assert base["hub"]["commit"] == commit
    assert base["reference"] == reference


def test_a_path_of_the_same_name_wins(
    pair: Pair, tiny: Tiny, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    hub.repo("alice/base", tiny.write(tmp_path / "decoy", tiny.weights(seed=7)))
    hub.repo("alice/ft", pair.finetuned)
    shutil.copytree(pair.base, tmp_path / "alice" / "base")
    refused = spawn(*MERGE, env=hub.env())
    assert (refused.code, "alice/ft: no local path of that name" in refused.err) == (66, True)
    assert spawn("alice/base", "hf://alice/ft", "-o", "out", env=hub.env()).code == 0
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(pair.base, pair.finetuned)
    assert not hub.log("alice/base")


def test_the_manifest_and_the_card_tell_the_commits(pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    put(hub, pair)
    base = hub.commit("alice/base", {"README.md": CARD})
    finetuned = hub.commit("alice/ft", {"README.md": CARD})
    assert spawn(*MERGE, env=hub.env()).code == 0
    manifest = json.loads((tmp_path / "out" / "speechft_merge.json").read_text())
    told = [manifest["base"]["hub"], manifest["finetuned"][0]["hub"]]
    assert [(hub["repo"], hub["revision"], hub["commit"]) for hub in told] == [
        ("alice/base", "main", base),
        ("alice/ft", "main", finetuned),
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- `alice/base` at `{base}`" in card
    assert f"- `alice/ft` at `{finetuned}`" in card
    assert "base_model:\n- alice/base\n- alice/ft\n" in card
    assert "license: mit\n" in card


def test_files_are_asked_for_at_the_commit_that_was_listed(large: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, large)
    assert spawn("inspect", "alice/base", env=hub.env()).code == 0
    paths = [entry.path for entry in hub.log("resolve/")]
    sha = hub.stored("alice/base").sha
    assert paths
    assert all(f"/resolve/{sha}/" in path for path in paths)


# what is fetched


def test_nothing_is_left_in_the_cache(large: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, large)
    assert spawn(*MERGE, env=hub.env()).code == 0
    assert [path for path in (hub.home / "hub").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("which", ["pair", "large"])
def test_the_token_is_shown_to_the_hub_only(
    which: str, request: pytest.FixtureRequest, hub: HubServer, spawn: Run
) -> None:
    put(hub, request.getfixturevalue(which), private=True)
    assert spawn(*MERGE, env=hub.env(READER)).code == 0
    assert {entry.host for entry in hub.log() if entry.token} == {urlsplit(hub.endpoint).netloc}
    assert hub.log("GET /cdn/")
    assert not any(entry.token for entry in hub.log("/cdn/"))


def test_a_public_model_needs_no_token(pair: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, pair)
    assert spawn(*MERGE, env=hub.env(None)).code == 0
    assert not any(entry.token for entry in hub.log())


def test_a_gated_model_is_read_with_the_token_of_who_may(pair: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, pair, gated=True)
    assert spawn(*MERGE, env=hub.env(READER)).code == 0


def test_a_head_that_is_not_merged_is_not_fetched(
    pair: Pair, tiny: Tiny, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    encoder = tiny.finetuned(tiny.read(pair.base))
    folder = tiny.write(tmp_path / "ft", tiny.ctc(encoder, vocabulary=100_000), {"model_type": "hubert"})
    hub.repo("alice/base", pair.base)
    hub.repo("alice/ft", folder)
    assert (folder / SINGLE).stat().st_size > 12 << 20
    assert spawn(*MERGE, env=hub.env()).code == 0
    assert sent(hub) < 2 << 20


def test_tensors_with_an_alpha_of_zero_are_not_fetched(large: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    hub.repo("alice/ft", large.finetuned)
    assert spawn(large.base, "alice/ft", "--layer-alpha", "layers=0", "-o", "out", env=hub.env()).code == 0
    layers = 3 * 2_100_000
    assert sent(hub) < (large.finetuned / SINGLE).stat().st_size - layers + 300_000


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_index_of_a_pickled_file_costs_few_requests(
    container: str, large: Pair, tiny: Tiny, hub: HubServer, spawn: Run
) -> None:
    content = CONTAINERS[container](tiny.read(large.base))
    assert len(content) > SMALL
    hub.repo("alice/base", {"pytorch_model.bin": content})
    ran = spawn("inspect", "alice/base", "--json", env=hub.env())
    assert ran.code == 0, ran.err
    assert len(hub.log("pytorch_model.bin|/cdn/")) <= 5
    assert sent(hub) <= 300_000


def test_of_a_larger_pair_little_more_than_its_bytes_is_fetched(
    tiny: Tiny, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    base = tiny.weights(hidden=512, layers=6)
    pair = tiny.write_pair(tmp_path / "pair", base, tiny.ctc(tiny.finetuned(base)))
    put(hub, pair)
    needed = 2 * sum(values.nbytes for values in base.values())
    assert needed > 100_000_000
    ran = spawn(*MERGE, env=hub.env())
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(pair.base, pair.finetuned)
    assert needed <= sent(hub) <= 1.01 * needed
    assert len(hub.log("/cdn/|resolve/")) < 40


def test_dry_run_fetches_the_index_and_a_sample(large: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    put(hub, large)
    ran = spawn(*MERGE, "--dry-run", "--json", env=hub.env())
    assert ran.code == 0, ran.err
    assert sent(hub) < 600_000
    assert not (tmp_path / "out").exists()


def test_the_same_merge_again_fetches_no_weights(large: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, large)
    assert spawn(*MERGE, env=hub.env()).code == 0
    hub.reset()
    again = spawn(*MERGE, "--json", env=hub.env())
    assert again.json["already_done"]
    assert sent(hub) < 600_000


# the cache


def test_a_file_in_the_cache_is_read_there(
    large: Pair, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    put(hub, large)
    fill_cache(hub, "alice/base", "alice/ft")
    hub.reset()
    ran = spawn(*MERGE, env=hub.env())
    assert ran.code == 0, ran.err
    assert not hub.log("/cdn/|resolve/")
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(large.base, large.finetuned)


def test_the_same_content_under_another_commit_is_read_in_the_cache(large: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, large)
    fill_cache(hub, "alice/base", "alice/ft")
    for repo in ("alice/base", "alice/ft"):
        hub.commit(repo, {"README.md": CARD})
    hub.reset()
    assert spawn(*MERGE, env=hub.env()).code == 0
    assert not hub.log("/cdn/")


def test_a_cache_of_older_weights_is_not_read(
    large: Pair, pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    put(hub, large)
    fill_cache(hub, "alice/base", "alice/ft")
    hub.commit("alice/base", pair.base)
    hub.commit("alice/ft", pair.finetuned)
    assert spawn(*MERGE, env=hub.env()).code == 0
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(pair.base, pair.finetuned)


def test_a_file_of_the_cache_that_was_cut_short_is_not_read(
    large: Pair, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    put(hub, large)
    fill_cache(hub, "alice/base")
    for blob in (hub.home / "hub").rglob("blobs/*"):
        if blob.stat().st_size > SMALL:
            os.truncate(blob, blob.stat().st_size - 1)
    assert spawn(*MERGE, env=hub.env()).code == 0
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(large.base, large.finetuned)


def test_offline_what_is_cached_is_merged(
    large: Pair, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    base, _ = put(hub, large)
    fill_cache(hub, "alice/base", "alice/ft")
    hub.reset()
    ran = spawn(*MERGE, env=hub.env(HF_HUB_OFFLINE="1"))
    assert ran.code == 0, ran.err
    assert not hub.log()
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(large.base, large.finetuned)
    manifest = json.loads((tmp_path / "out" / "speechft_merge.json").read_text())
    assert manifest["base"]["hub"]["commit"] == base


def test_offline_and_online_are_the_same_merge(large: Pair, hub: HubServer, spawn: Run) -> None:
    put(hub, large)
    fill_cache(hub, "alice/base", "alice/ft")
    assert spawn(*MERGE, env=hub.env()).code == 0
    again = spawn(*MERGE, "--json", env=hub.env(HF_HUB_OFFLINE="1"))
    assert again.code == 0, again.err
    assert again.json["already_done"]


@pytest.mark.parametrize("repo", ["alice/base", "alice/base@dev"])
def test_offline_what_is_not_cached_is_named(repo: str, pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    put(hub, pair, branches=["dev"])
    ran = spawn(repo, "alice/ft", "-o", "out", env=hub.env(HF_HUB_OFFLINE="1"))
    assert ran.code == 66
    assert "HF_HUB_OFFLINE is set" in ran.err
    assert "alice/base" in ran.err
    assert "--download" in ran.err
    assert not hub.log()
    assert not (tmp_path / "out").exists()


def test_download_fills_the_cache(
    large: Pair, hub: HubServer, spawn: Run, tmp_path: Path, merged: Callable[..., bytes]
) -> None:
    put(hub, large)
    ran = spawn(*MERGE, "--download", env=hub.env())
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / SINGLE).read_bytes() == merged(large.base, large.finetuned)
    cached = [path.name for path in (hub.home / "hub").rglob("snapshots/*/*")]
    assert cached.count(SINGLE) == 2
    hub.reset()
    assert spawn("alice/base", "alice/ft", "-o", "again", env=hub.env()).code == 0
    assert not hub.log("/cdn/")


@pytest.mark.parametrize("which", ["pair", "large"])
@pytest.mark.parametrize("revision", ["", "@dev"])
def test_after_download_the_same_works_offline(
    which: str, revision: str, request: pytest.FixtureRequest, hub: HubServer, spawn: Run, tmp_path: Path,
    snapshot: Snapshot,
) -> None:  # fmt: skip
    """That is what the message about HF_HUB_OFFLINE tells to do."""
    put(hub, request.getfixturevalue(which), branches=["dev"])
    models = (f"alice/base{revision}", f"alice/ft{revision}")
    assert spawn(*models, "-o", "out", "--download", env=hub.env()).code == 0
    ran = spawn(*models, "-o", "offline", env=hub.env(HF_HUB_OFFLINE="1"))
    assert ran.code == 0, ran.err
    before, after = snapshot(tmp_path / "out"), snapshot(tmp_path / "offline")
    written = {"README.md", "speechft_merge.json"}  # the command differs in these
    assert before.keys() == after.keys()
    assert {name: before[name] for name in before.keys() - written} == {
        name: after[name] for name in after.keys() - written
    }


# Xet


@pytest.mark.parametrize("options", [(), ("--download",)], ids=["streamed", "downloaded"])
def test_a_model_that_was_stored_by_way_of_xet_is_read(
    options: tuple[str, ...], large: Pair, hub: HubServer, spawn: Run, tmp_path: Path
) -> None:
    pytest.importorskip("hf_xet")
    hub.delete("alice/xet")
    env = hub.env(HF_HUB_DISABLE_XET="0")
    ran = spawn(*large.args, "-o", "base", "--push-to-hub", "alice/xet", env=env)
    assert ran.code == 0, ran.err
    assert hub.log("xet-write-token")
    ran = spawn("alice/xet", large.finetuned, *options, "-o", "out", env=env)
    assert ran.code == 0, ran.err
    assert bool(hub.log("xet-read-token")) == bool(options)  # ranges come from the bridge over HTTP
    assert spawn("base", large.finetuned, "-o", "local").code == 0
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / "local" / SINGLE).read_bytes()
