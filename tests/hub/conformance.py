"""Calls the real huggingface_hub against the server that the environment names; one line for each call that fails.

python conformance.py USER: HF_TOKEN may write to the repositories of USER. Ends with 1 if anything failed.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, ModelCard, ModelCardData
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

Call = Callable[["Client"], object]

SHAPE = (64, 64)
LAYERS = 20
FIRST_OF_2_X = 2

calls: list[Call] = []


class Client:
    """A user with a repository; the calls run in order, and later ones build on what earlier ones pushed."""

    def __init__(self, user: str, folder: Path) -> None:
        self.user = user
        self.repo = f"{user}/conformance-{time.time_ns()}"
        # Any: nearly everything that HfApi returns may be None, which the checks would find out
        self.api: Any = HfApi()
        self.anonymous: Any = HfApi(token=False)
        self.mistaken: Any = HfApi(token="hf_mistaken")
        self.model = folder / "model"
        self.weights = self.model / "model.safetensors"
        self._folder = folder
        self._write_model()

    def fresh(self) -> Path:
        """An empty cache."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def got(self, name: str, revision: str | None = None, api: Any = None) -> bytes:
        """A file of the repository, downloaded anew."""
        path = (api or self.api).hf_hub_download(self.repo, name, revision=revision, cache_dir=self.fresh())
        return Path(path).read_bytes()

    def push(self, name: str, content: bytes, **options: Any) -> str:
        operation = CommitOperationAdd(name, content)
        return str(self.api.create_commit(self.repo, [operation], commit_message=f"Add {name}", **options).oid)

    def _write_model(self) -> None:
        self.model.mkdir()
        (self.model / "config.json").write_text('{"model_type": "hubert"}')
        (self.model / "README.md").write_text("---\ntags: [merge]\nlibrary_name: transformers\n---\n# x\n")
        (self.model / "pytorch_model.bin").write_bytes(os.urandom(300_000))
        size = 4 * SHAPE[0] * SHAPE[1]
        header = ",".join(
            f'"layer.{i}.weight":{{"dtype":"F32","shape":{list(SHAPE)},"data_offsets":[{i * size},{(i + 1) * size}]}}'
            for i in range(LAYERS)
        )
        encoded = f"{{{header}}}".encode()
        self.weights.write_bytes(struct.pack("<Q", len(encoded)) + encoded + os.urandom(LAYERS * size))


def succeeds(call: Call) -> Call:
    calls.append(call)
    return call


def fails(error: type[HfHubHTTPError], status: int) -> Callable[[Call], Call]:
    """The call raises exactly this."""

    def decorator(call: Call) -> Call:
        def raising(client: Client) -> None:
            with pytest.raises(error) as raised:
                call(client)
            assert raised.type is error
            assert raised.value.response.status_code == status

        raising.__name__ = call.__name__
        calls.append(raising)
        return call

    return decorator


@succeeds
def whoami(client: Client) -> None:
    assert client.api.whoami()["name"] == client.user


@succeeds
def create_repo(client: Client) -> None:
    assert client.api.create_repo(client.repo).repo_id == client.repo


@succeeds
def create_repo_exist_ok(client: Client) -> None:
    assert client.api.create_repo(client.repo.partition("/")[2], exist_ok=True).repo_id == client.repo


@fails(HfHubHTTPError, 409)
def create_repo_again(client: Client) -> None:
    client.api.create_repo(client.repo)


@succeeds
def repo_exists(client: Client) -> None:
    assert client.api.repo_exists(client.repo)
    assert not client.api.repo_exists(f"{client.user}/nope")


@succeeds
def upload_folder(client: Client) -> None:
    client.api.upload_folder(repo_id=client.repo, folder_path=client.model, commit_message="Upload")


@succeeds
def model_info(client: Client) -> None:
    info = client.api.model_info(client.repo)
    assert (info.id, info.private, info.gated, info.tags) == (client.repo, False, False, ["merge"])
    assert info.card_data["library_name"] == info.library_name == "transformers"


@succeeds
def model_info_files_metadata(client: Client) -> None:
    files = {file.rfilename: file for file in client.api.model_info(client.repo, files_metadata=True).siblings}
    assert files["model.safetensors"].size == files["model.safetensors"].lfs.size == client.weights.stat().st_size
    assert files["config.json"].lfs is None


@succeeds
def list_repo_files(client: Client) -> None:
    expected = [".gitattributes", "README.md", "config.json", "model.safetensors", "pytorch_model.bin"]
    assert client.api.list_repo_files(client.repo) == expected


@succeeds
def list_repo_tree(client: Client) -> None:
    client.push("a/b/c.txt", b"c")
    shallow = [item.path for item in client.api.list_repo_tree(client.repo)]
    assert "a" in shallow
    assert "a/b" not in shallow
    assert [item.path for item in client.api.list_repo_tree(client.repo, "a", recursive=True)] == ["a/b", "a/b/c.txt"]


@succeeds
def get_paths_info(client: Client) -> None:
    weights, folder = client.api.get_paths_info(client.repo, ["model.safetensors", "nope", "a"])
    assert weights.lfs.size == client.weights.stat().st_size
    assert folder.path == "a"


@succeeds
def file_exists(client: Client) -> None:
    assert client.api.file_exists(client.repo, "config.json")
    assert not client.api.file_exists(client.repo, "nope.json")


@succeeds
def get_hf_file_metadata(client: Client) -> None:
    url = huggingface_hub.hf_hub_url(client.repo, "model.safetensors", endpoint=client.api.endpoint)
    metadata = client.api.get_hf_file_metadata(url=url)
    assert metadata.size == client.weights.stat().st_size
    assert metadata.commit_hash == client.api.model_info(client.repo).sha
    assert metadata.location.startswith("http://localhost:")


@succeeds
def hf_hub_download_small(client: Client) -> None:
    assert client.got("config.json") == (client.model / "config.json").read_bytes()


@succeeds
def hf_hub_download_large(client: Client) -> None:
    assert client.got("model.safetensors") == client.weights.read_bytes()


@succeeds
def snapshot_download(client: Client) -> None:
    folder = Path(client.api.snapshot_download(client.repo, cache_dir=client.fresh()))
    assert (folder / "a/b/c.txt").read_text() == "c"


@succeeds
def get_safetensors_metadata(client: Client) -> None:
    assert len(client.api.get_safetensors_metadata(client.repo).weight_map) == LAYERS


@succeeds
def file_system_read(client: Client) -> None:
    with HfFileSystem().open(f"{client.repo}/model.safetensors", block_size=2**16, cache_type="none") as file:
        file.seek(5000)
        assert file.read(777) == client.weights.read_bytes()[5000:5777]


@succeeds
def file_system_info(client: Client) -> None:
    file_system = HfFileSystem()
    assert f"{client.repo}/config.json" in file_system.ls(client.repo, detail=False)
    assert file_system.info(f"{client.repo}/model.safetensors")["size"] == client.weights.stat().st_size


@succeeds
def create_commit(client: Client) -> None:
    random = os.urandom(9999)
    operations = [
        CommitOperationAdd("a.json", b"{}"),
        CommitOperationAdd("b.json", client.model / "config.json"),
        CommitOperationAdd("w.bin", io.BytesIO(random)),
    ]
    client.api.create_commit(client.repo, operations, commit_message="Three kinds of content")
    assert client.got("w.bin") == random


@succeeds
def delete_files(client: Client) -> None:
    operations = [CommitOperationDelete("a.json"), CommitOperationDelete("a/")]
    client.api.create_commit(client.repo, operations, commit_message="Delete")
    assert {"a.json", "a/b/c.txt"}.isdisjoint(client.api.list_repo_files(client.repo))


@succeeds
def unchanged_files_make_no_commit(client: Client) -> None:
    before = client.api.model_info(client.repo).sha
    assert client.api.upload_folder(repo_id=client.repo, folder_path=client.model).oid == before


@succeeds
def preupload_lfs_files(client: Client) -> None:
    operation = CommitOperationAdd("shard.safetensors", os.urandom(1000))
    client.api.preupload_lfs_files(client.repo, [operation])
    client.api.create_commit(client.repo, [operation], commit_message="Add a shard")
    assert client.api.file_exists(client.repo, "shard.safetensors")


@succeeds
def parent_commit(client: Client) -> None:
    sha = client.push("c.json", b"{1}", parent_commit=client.api.model_info(client.repo).sha)
    assert client.api.list_repo_commits(client.repo)[0].commit_id == sha


@fails(HfHubHTTPError, 412)
def parent_commit_stale(client: Client) -> None:
    client.push("c.json", b"{2}", parent_commit=client.api.list_repo_commits(client.repo)[-1].commit_id)


@succeeds
def create_branch(client: Client) -> None:
    client.api.create_branch(client.repo, branch="exp")
    sha = client.push("exp.json", b"{}", revision="exp")
    assert client.api.model_info(client.repo, revision="exp").sha == sha
    assert not client.api.file_exists(client.repo, "exp.json")


@fails(HfHubHTTPError, 409)
def create_branch_again(client: Client) -> None:
    client.api.create_branch(client.repo, branch="exp")


@succeeds
def create_tag(client: Client) -> None:
    client.api.create_tag(client.repo, tag="v1")
    assert client.got("config.json", "v1")


@succeeds
def pull_request(client: Client) -> None:
    commit = client.api.create_commit(
        client.repo, [CommitOperationAdd("pr.json", b"{}")], commit_message="Propose", create_pr=True
    )
    assert commit.pr_revision == "refs/pr/1"
    assert client.got("pr.json", commit.pr_revision) == b"{}"
    with HfFileSystem().open(f"{client.repo}@{commit.pr_revision}/model.safetensors") as file:
        assert file.read(8) == client.weights.read_bytes()[:8]


@succeeds
def list_repo_refs(client: Client) -> None:
    refs = client.api.list_repo_refs(client.repo, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main", "exp"]
    assert [tag.name for tag in refs.tags] == ["v1"]
    assert [request.ref for request in refs.pull_requests] == ["refs/pr/1"]


@succeeds
def delete_refs(client: Client) -> None:
    client.api.delete_branch(client.repo, branch="exp")
    client.api.delete_tag(client.repo, tag="v1")
    refs = client.api.list_repo_refs(client.repo)
    assert ([branch.name for branch in refs.branches], refs.tags) == (["main"], [])


@fails(RemoteEntryNotFoundError, 404)
def missing_file(client: Client) -> None:
    client.got("nope.bin")


@fails(RevisionNotFoundError, 404)
def missing_revision(client: Client) -> None:
    client.got("config.json", "nope")


@fails(RevisionNotFoundError, 404)
def missing_revision_to_push_to(client: Client) -> None:
    client.push("a.json", b"{}", revision="nope")


@fails(RepositoryNotFoundError, 404)
def missing_repo(client: Client) -> None:
    client.api.model_info(f"{client.user}/nope")


@fails(RepositoryNotFoundError, 401)
def missing_repo_anonymous(client: Client) -> None:
    client.anonymous.model_info(f"{client.user}/nope")


@fails(HfHubHTTPError, 401)
def wrong_token(client: Client) -> None:
    client.mistaken.model_info(client.repo)


@fails(HfHubHTTPError, 401)
def wrong_token_download(client: Client) -> None:
    client.got("config.json", api=client.mistaken)


@succeeds
def private_repo(client: Client) -> None:
    client.api.create_repo(f"{client.repo}-private", private=True)
    client.api.upload_folder(repo_id=f"{client.repo}-private", folder_path=client.model)
    assert client.api.model_info(f"{client.repo}-private").private


@fails(RepositoryNotFoundError, 401)
def private_repo_anonymous(client: Client) -> None:
    client.anonymous.model_info(f"{client.repo}-private")


@fails(RepositoryNotFoundError, 401)
def private_repo_anonymous_download(client: Client) -> None:
    client.anonymous.hf_hub_download(f"{client.repo}-private", "config.json", cache_dir=client.fresh())


@succeeds
def gated_repo(client: Client) -> None:
    client.api.update_repo_settings(client.repo, gated="manual")
    assert client.anonymous.model_info(client.repo).gated == "manual"
    assert client.got("config.json")


@fails(GatedRepoError, 401)
def gated_repo_anonymous_download(client: Client) -> None:
    client.got("config.json", api=client.anonymous)


@fails(HfHubHTTPError, 401)
def create_repo_anonymous(client: Client) -> None:
    client.anonymous.create_repo(f"{client.repo}-x")


@fails(HfHubHTTPError, 403)
def create_repo_of_another_user(client: Client) -> None:
    client.api.create_repo("someone-else/x")


@succeeds
def run_as_future(client: Client) -> None:
    future = client.api.upload_file(
        path_or_fileobj=b"{}", path_in_repo="future.json", repo_id=client.repo, run_as_future=True
    )
    assert future.result().oid == client.api.model_info(client.repo).sha


@succeeds
def push_model_card(client: Client) -> None:
    data = ModelCardData(library_name="transformers", base_model=["a/b", "c/d"], base_model_relation="merge")
    card = f"---\n{data.to_yaml()}\n---\n# Merged\n"
    if int(huggingface_hub.__version__.partition(".")[0]) < FIRST_OF_2_X:
        client.push("README.md", card.encode())  # ModelCard of 1.x asks huggingface.co, whatever HF_ENDPOINT says
    else:
        ModelCard(card).push_to_hub(client.repo)
    assert client.api.model_info(client.repo).card_data["base_model_relation"] == "merge"


@succeeds
def invalid_model_card(client: Client) -> None:
    with pytest.raises(ValueError, match=r'"\./here" is not valid'):
        client.push("README.md", b"---\nbase_model: [./here]\n---\n")


@succeeds
def delete_repo(client: Client) -> None:
    client.api.delete_repo(client.repo)
    assert not client.api.repo_exists(client.repo)


def main() -> None:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        client = Client(sys.argv[1], Path(folder))
        for call in calls:
            try:
                call(client)
            except Exception as error:
                failed += 1
                print(f"{call.__name__}: {error!r}")
    print(f"huggingface_hub {huggingface_hub.__version__}: {len(calls) - failed} of {len(calls)} calls passed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
