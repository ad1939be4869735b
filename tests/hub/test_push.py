"""A merged model goes to the Hub in one commit, or stays here with the command that sends it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import READER, STRANGER, UNKNOWN, WRITER, HubServer, StartHub
from processes import plain_environment
from server import card

if TYPE_CHECKING:
    from conftest import Pair, Ran, Run, Start

SINGLE = "model.safetensors"
WRITTEN = {SINGLE, "config.json", "preprocessor_config.json", "README.md", "speechft_merge.json"}
LICENSED = "---\nlicense: mit\n---\n# A model\n"


@pytest.fixture
def target(hub: HubServer) -> str:
    """A repository that is not there yet."""
    hub.delete("alice/merged")
    return "alice/merged"


@pytest.fixture
def empty(hub: HubServer) -> str:
    """A repository that is there and has nothing but what it was made with."""
    hub.repo("alice/merged", {})
    return "alice/merged"


def contents(hub: HubServer, repo: str, revision: str = "main") -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in hub.stored(repo, revision).files.items()}


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(ran: Ran, code: int, *said: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert ran.err.startswith("speechft-merge: error: ")
    for text in said:
        assert text in ran.err
    assert not any(re.search(rf"{token}\b", ran.err) for token in (WRITER, READER, STRANGER, UNKNOWN))


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def started(start: Start, hub: HubServer, monkeypatch: pytest.MonkeyPatch, *args: object) -> Any:
    for name, value in hub.env().items():
        monkeypatch.setenv(name, value)
    return start(*args)


# one commit


def test_everything_goes_in_one_commit(pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    stored = hub.stored(target)
    assert stored.titles == ["Merge by speechft-merge", "initial commit"]
    assert len(hub.log(f"POST /api/models/{target}/commit/")) == 1
    assert ran.lines[-1] == f"{hub.endpoint}/{target}/commit/{stored.sha}"
    assert folder_contents(tmp_path / "out").keys() == WRITTEN
    here, there = folder_contents(tmp_path / "out"), contents(hub, target)
    assert {name for name in WRITTEN if here[name] != there[name]} == {"speechft_merge.json"}  # has no path of ours
    assert stored.files.keys() - WRITTEN == {".gitattributes"}
    assert not stored.private


def test_without_a_named_output_nothing_stays_here(
    pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path
) -> None:
    ran = spawn(*pair.args, "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    assert hub.stored(target).files.keys() >= WRITTEN
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == []


def test_an_output_that_was_there_before_stays(
    pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path
) -> None:
    assert spawn(*pair.args, env=hub.env()).code == 0
    ran = spawn(*pair.args, "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    assert hub.stored(target).files.keys() >= WRITTEN
    assert folder_contents(tmp_path / "finetuned-merged-0.25").keys() == WRITTEN


def test_remote_models_become_a_remote_model(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    hub.repo("alice/base", {**{path.name: path for path in pair.base.iterdir()}, "README.md": LICENSED})
    hub.repo("alice/ft", {**{path.name: path for path in pair.finetuned.iterdir()}, "README.md": LICENSED})
    ran = spawn("alice/base", "alice/ft", "--push-to-hub", target, "--json", env=hub.env())
    assert ran.code == 0, ran.err
    assert ran.json["pushed"] == {
        "repo": target,
        "url": f"{hub.endpoint}/{target}/commit/{hub.stored(target).sha}",
        "replaced": [],
        "deleted": [],
        "kept": [],
    }
    text = hub.stored(target).files["README.md"].read_text()
    assert card.errors(text) == []
    told = card.metadata(text)
    assert told["base_model"] == ["alice/base", "alice/ft"]
    assert told["base_model_relation"] == "merge"
    assert told["license"] == "mit"
    assert "merge" in told["tags"]
    assert WRITER not in text


def test_the_client_understands_the_card(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    from huggingface_hub import ModelCard

    hub.repo("alice/base", pair.base)
    hub.repo("alice/ft", pair.finetuned)
    assert spawn("alice/base", "alice/ft", "--push-to-hub", target, env=hub.env()).code == 0
    data: Any = ModelCard(hub.stored(target).files["README.md"].read_text()).data
    assert data.base_model == ["alice/base", "alice/ft"]
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "feature-extraction"


def test_a_card_without_remote_models_names_no_base(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    assert spawn(*pair.args, "--push-to-hub", target, env=hub.env()).code == 0
    text = hub.stored(target).files["README.md"].read_text()
    assert "base_model" not in card.metadata(text)
    assert str(pair.base.parent) not in text


def test_sharded_weights_go_with_their_index(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    ran = spawn(*pair.args, "--max-shard-size", "60KB", "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    stored = hub.stored(target)
    named = set(json.loads(stored.files[f"{SINGLE}.index.json"].read_text())["weight_map"].values())
    assert len(named) > 1
    assert named <= stored.files.keys()
    assert len(stored.titles) == 2


# options


def test_private(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    assert spawn(*pair.args, "--push-to-hub", target, "--private", env=hub.env()).code == 0
    assert hub.stored(target).private


def test_the_name_may_lack_the_user(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    ran = spawn(*pair.args, "--push-to-hub", "merged", env=hub.env())
    assert ran.code == 0, ran.err
    assert SINGLE in hub.stored(target).files


def test_commit_message(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    ran = spawn(*pair.args, "--push-to-hub", target, "--commit-message", "A quarter of it", env=hub.env())
    assert ran.code == 0, ran.err
    assert hub.stored(target).titles[0] == "A quarter of it"


@pytest.mark.parametrize("there", [False, True])
def test_branch(there: bool, pair: Pair, hub: HubServer, empty: str, spawn: Run) -> None:
    if there:
        hub.repo(empty, {}, branches=["dev"])
    before = hub.stored(empty).sha
    ran = spawn(*pair.args, "--push-to-hub", empty, "--branch", "dev", env=hub.env())
    assert ran.code == 0, ran.err
    assert hub.stored(empty).sha == before
    assert hub.stored(empty, "dev").files.keys() >= WRITTEN


@pytest.mark.parametrize("token", [WRITER, STRANGER])
def test_create_pr(token: str, pair: Pair, hub: HubServer, empty: str, spawn: Run) -> None:
    before = hub.stored(empty).sha
    ran = spawn(*pair.args, "--push-to-hub", empty, "--create-pr", env=hub.env(token))
    assert ran.code == 0, ran.err
    assert ran.lines[-1] == f"{hub.endpoint}/{empty}/discussions/1"
    assert hub.stored(empty).sha == before
    assert hub.stored(empty, "refs/pr/1").files.keys() >= WRITTEN


def test_dry_run_changes_nothing_on_the_hub(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    assert spawn(*pair.args, "--push-to-hub", target, "--dry-run", env=hub.env()).code == 0
    assert not hub.log("^(POST|PUT|DELETE)")


def test_push_sends_the_output_of_an_earlier_merge(
    pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path
) -> None:
    assert spawn(*pair.args, "-o", "out").code == 0
    ran = spawn("push", "out", target, "--private", "--commit-message", "later", "--json", env=hub.env())
    assert ran.code == 0, ran.err
    url = f"{hub.endpoint}/{target}/commit/{hub.stored(target).sha}"
    assert ran.json == {"repo": target, "url": url, "replaced": [], "deleted": [], "kept": []}
    assert hub.stored(target).private
    assert hub.stored(target).titles[0] == "later"
    assert folder_contents(tmp_path / "out").keys() == WRITTEN


@pytest.mark.parametrize("folder", ["nothing", "."])
def test_push_of_what_is_no_merge_makes_no_repository(folder: str, hub: HubServer, target: str, spawn: Run) -> None:
    assert_refused(spawn("push", folder, target, env=hub.env()), 66, "not the output of a merge")
    assert not hub.log("POST /api/repos/create")


def test_a_merge_that_cannot_be_makes_no_repository(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    assert_refused(spawn(pair.base, "./nothing", "--push-to-hub", target, env=hub.env()), 66, "nothing")
    assert not hub.log("POST /api/repos/create")


# again


def test_another_alpha_is_another_commit(pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path) -> None:
    assert spawn(*pair.args, "--push-to-hub", target, env=hub.env()).code == 0
    ran = spawn(*pair.args, "--alpha", "0.5", "-o", "half", "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    stored = hub.stored(target)
    assert len(stored.titles) == 3
    assert stored.files[SINGLE].read_bytes() == (tmp_path / "half" / SINGLE).read_bytes()


def test_weights_of_an_earlier_push_are_removed_and_other_files_are_not(
    pair: Pair, hub: HubServer, empty: str, spawn: Run
) -> None:
    hub.commit(empty, {"notes.md": "mine", "pytorch_model.bin": b"old", "sub/model.safetensors": b"other"})
    ran = spawn(*pair.args, "--max-shard-size", "60KB", "--push-to-hub", empty, env=hub.env())
    assert ran.code == 0, ran.err
    assert "pytorch_model.bin" not in hub.stored(empty).files
    assert f"{SINGLE}.index.json" in hub.stored(empty).files
    ran = spawn(*pair.args, "--push-to-hub", empty, env=hub.env())
    assert ran.code == 0, ran.err
    assert hub.stored(empty).files.keys() == WRITTEN | {".gitattributes", "notes.md", "sub/model.safetensors"}


def test_the_same_push_again_succeeds(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    for _ in range(2):
        ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env())
        assert ran.code == 0, ran.err
    assert hub.stored(target).files.keys() >= WRITTEN


# refused before the merge


@pytest.mark.parametrize(
    ("token", "code", "said"),
    [
        (READER, 1, ("read-only", "write")),
        (UNKNOWN, 1, ("rejected your token",)),
        (None, 1, ("hf auth login", "HF_TOKEN")),
        (STRANGER, 1, ("alice/merged", "--create-pr")),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_who_may_not_push_is_told_before_the_merge(
    token: str | None, code: int, said: tuple[str, ...], there: bool, pair: Pair, hub: HubServer, target: str,
    spawn: Run, tmp_path: Path,
) -> None:  # fmt: skip
    if there:
        hub.repo(target, {})
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env(token))
    assert_refused(ran, code, *said)
    assert not (tmp_path / "out").exists()


def test_a_pull_request_needs_a_repository(pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, "--create-pr", env=hub.env())
    assert_refused(ran, 66, target)
    assert not (tmp_path / "out").exists()


def test_private_does_not_mean_a_repository_that_is_public(
    pair: Pair, hub: HubServer, empty: str, spawn: Run, tmp_path: Path
) -> None:
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", empty, "--private", env=hub.env())
    assert_refused(ran, 1, f"{empty} already exists and is public", "leave --private out")
    assert not (tmp_path / "out").exists()


def test_offline_nothing_can_be_pushed(pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env(HF_HUB_OFFLINE="1"))
    assert_refused(ran, 1, "HF_HUB_OFFLINE is set", "nothing can be pushed")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a/b/c", "alice/a--b", "alice/../x", "", "alice/my model"])
def test_a_name_that_no_repository_can_have(name: str, pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", name, env=hub.env())
    assert_refused(ran, ran.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("match", ["GET /api/whoami", "POST /api/repos/create", "GET /api/models/"])
def test_a_hub_that_is_busy_before_the_merge(
    match: str, pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path
) -> None:
    hub.fault(match, times=100, status=503, headers={"Retry-After": "0"})
    assert_refused(spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env()), 75, "again later")
    assert not (tmp_path / "out").exists()


# failed after the merge


def command_to_push(err: str) -> list[str]:
    """What the message says to run, without the program's name."""
    said = re.search(r"push it with: speechft-merge (push .*)", err)
    assert said, err
    return shlex.split(said[1])


@pytest.mark.parametrize("output", [("-o", "out"), (), ("-o", "my model")])
@pytest.mark.parametrize("options", [(), ("--branch", "dev")])
def test_what_could_not_be_pushed_stays_and_the_command_sends_it(
    options: tuple[str, ...], output: tuple[str, ...], pair: Pair, hub: HubServer, empty: str, spawn: Run,
    tmp_path: Path,
) -> None:  # fmt: skip
    hub.fault("POST .*/commit/", times=100, status=500)
    ran = spawn(*pair.args, *output, "--push-to-hub", empty, *options, env=hub.env())
    assert_refused(ran, 75, "the merged model is in")
    folder = tmp_path / (output[1] if output else "finetuned-merged-0.25")
    assert folder_contents(folder).keys() == WRITTEN
    hub.reset()
    again = spawn(*command_to_push(ran.err), env=hub.env())
    assert again.code == 0, again.err
    assert hub.stored(empty, options[1] if options else "main").files.keys() >= WRITTEN


def test_a_pull_request_that_failed_can_be_made_later(pair: Pair, hub: HubServer, empty: str, spawn: Run) -> None:
    hub.fault("POST .*/commit/", times=100, status=500)
    ran = spawn(*pair.args, "--push-to-hub", empty, "--create-pr", env=hub.env(STRANGER))
    assert_refused(ran, 75, "--create-pr")
    hub.reset()
    again = spawn(*command_to_push(ran.err), env=hub.env(STRANGER))
    assert again.code == 0, again.err
    assert hub.stored(empty, "refs/pr/1").files.keys() >= WRITTEN


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(
    pair: Pair, hub: HubServer, empty: str, start: Start, spawn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault("POST .*/preupload/", hold=True)
    process = started(start, hub, monkeypatch, *pair.args, "-o", "out", "--push-to-hub", empty)
    wait_for(lambda: bool(hub.log("POST .*/preupload/")))
    theirs = hub.commit(empty, {"config.json": "{}"}, title="somebody else's")
    hub.release()
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    assert out == ""
    assert "changed meanwhile" in err
    assert hub.stored(empty).sha == theirs
    assert folder_contents(tmp_path / "out").keys() == WRITTEN
    again = spawn(*command_to_push(err), env=hub.env())
    assert again.code == 0, again.err
    assert SINGLE in hub.stored(empty).files


@pytest.mark.parametrize(
    "match",
    [
        "PUT /lfs/",
        "POST .*/preupload/",
        "POST .*/commit/",
    ],
)
def test_a_server_that_dies_in_the_upload(
    match: str, pair: Pair, start_hub: StartHub, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start_hub()
    hub.fault(match, times=100, hold=True)
    process = started(start, hub, monkeypatch, *pair.args, "--push-to-hub", "alice/merged")
    wait_for(lambda: bool(hub.log(match)))
    hub.kill()
    out, err = process.communicate(timeout=100)
    assert process.returncode in (1, 75), err
    assert out == ""
    assert "Traceback" not in err
    assert command_to_push(err) == ["push", "finetuned-merged-0.25", "alice/merged"]
    assert folder_contents(tmp_path / "finetuned-merged-0.25").keys() == WRITTEN


def test_an_upload_that_fails_once_is_tried_again(pair: Pair, hub: HubServer, target: str, spawn: Run) -> None:
    hub.fault("PUT /lfs/", status=503)
    ran = spawn(*pair.args, "--alpha", "0.3125", "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    assert hub.stored(target).files.keys() >= WRITTEN


def test_xet_uploads_what_lfs_would(pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env(HF_HUB_DISABLE_XET="0"))
    assert ran.code == 0, ran.err
    assert hub.stored(target).files[SINGLE].read_bytes() == (tmp_path / "out" / SINGLE).read_bytes()
    assert hub.log("xet-write-token")


# tried again


@pytest.mark.parametrize(
    ("match", "fault"),
    [
        ("GET /api/whoami", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST /api/repos/create", {"status": 503, "headers": {"Retry-After": "0"}}),
        ("POST .*/preupload/", {"status": 500}),
        ("POST .*/objects/batch", {"status": 503, "headers": {"Retry-After": "0"}}),
        ("PUT /lfs/", {"status": 403}),  # a signed URL that has expired
        ("PUT /lfs/", {"status": 503, "times": 7}),  # more often than the client itself tries
        ("POST .*/commit/", {"status": 503, "headers": {"Retry-After": "0"}}),
        ("POST .*/commit/", {"status": 500, "late": True}),  # carried out, but the answer is lost
        ("POST .*/commit/", {"drop_after": 0}),
    ],
)
def test_what_fails_and_may_pass_is_tried_again_and_makes_one_commit(
    match: str, fault: dict[str, Any], pair: Pair, hub: HubServer, target: str, spawn: Run, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    alpha = str(0.3 + sum(request.node.name.encode()) / 1e5)  # or the Hub has these weights already
    hub.fault(match, **fault)
    ran = spawn(*pair.args, "-q", "-o", "out", "--alpha", alpha, "--push-to-hub", target, env=hub.env())
    assert ran.code == 0, ran.err
    stored = hub.stored(target)
    assert stored.titles == ["Merge by speechft-merge", "initial commit"]
    assert stored.files[SINGLE].read_bytes() == (tmp_path / "out" / SINGLE).read_bytes()
    assert ran.out.strip().endswith(stored.sha)


def test_of_two_pull_requests_none_is_made_where_an_answer_was_lost(
    pair: Pair, hub: HubServer, empty: str, spawn: Run
) -> None:
    hub.fault("POST .*/commit/", status=500, late=True)
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", empty, "--create-pr", env=hub.env(STRANGER))
    assert ran.code == 75
    assert [ref for ref in hub.stored(empty).refs if "/pr/" in ref] == ["refs/pr/1"]


@pytest.mark.parametrize(("match", "status"), [("PUT /lfs/", 507), ("POST .*/commit/", 413)])
def test_a_full_account_is_said_and_not_tried_again(
    match: str, status: int, pair: Pair, hub: HubServer, target: str, spawn: Run
) -> None:
    hub.fault(match, times=100, status=status)
    ran = spawn(*pair.args, "-o", "out", "--alpha", f"0.4{status}", "--push-to-hub", target, env=hub.env())
    assert_refused(ran, 1, "the Hub has no room", "free some storage")
    assert len(hub.log(match)) == 1


@pytest.mark.parametrize(
    "match", ["GET /api/whoami", "POST /api/repos/create", "POST .*/preupload/", "POST .*/commit/"]
)
@pytest.mark.parametrize("body", ["[1]", "5", '{"a":{}}'])
def test_json_of_another_shape_is_no_traceback(
    match: str, body: str, pair: Pair, hub: HubServer, target: str, spawn: Run
) -> None:
    hub.fault(match, times=100, status=200, body=body, headers={"Content-Type": "application/json"})
    ran = spawn(*pair.args, "-o", "out", "--push-to-hub", target, env=hub.env())
    assert_refused(ran, ran.code)
    assert ran.code in (1, 75)


def test_a_silent_upload_of_several_files_ends_with_the_signal(
    pair: Pair, hub: HubServer, target: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault("PUT /lfs/", times=100, hold=True)
    options = ["--max-shard-size", "40KB", "--alpha", "0.77", "-o", "out"]
    process = started(start, hub, monkeypatch, *pair.args, *options, "--push-to-hub", target)
    wait_for(lambda: len(hub.log("PUT /lfs/")) > 1)
    process.terminate()
    _, err = process.communicate(timeout=5)
    hub.release()
    assert process.returncode == 143
    assert "the merge is complete: out" in err


# the local output of others


def test_an_output_that_another_merge_found_while_it_was_pushed_stays(
    pair: Pair, hub: HubServer, target: str, start: Start, spawn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault("POST .*/preupload/", hold=True)
    process = started(start, hub, monkeypatch, *pair.args, "--push-to-hub", target)
    wait_for(lambda: bool(hub.log("POST .*/preupload/")))
    assert spawn(*pair.args, "-q", env=hub.env()).code == 0
    hub.release()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert folder_contents(tmp_path / "finetuned-merged-0.25").keys() == WRITTEN


@pytest.mark.parametrize("options", [[], ["-o", "out"]], ids=["temporary", "kept"])
def test_an_output_that_another_merge_replaced_is_neither_pushed_nor_removed(
    options: list[str], pair: Pair, hub: HubServer, target: str, start: Start, spawn: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hub.fault("POST .*/preupload/", hold=True)
    process = started(start, hub, monkeypatch, *pair.args, *options, "--push-to-hub", target)
    wait_for(lambda: bool(hub.log("POST .*/preupload/")))
    output = "out" if options else "finetuned-merged-0.25"
    assert spawn(*pair.args, "--alpha", "0.9", "-o", output, "--overwrite", env=hub.env()).code == 0
    theirs = folder_contents(tmp_path / output)
    hub.release()
    _, err = process.communicate(timeout=100)
    assert (process.returncode, "another process replaced" in err) == (73, True)
    assert hub.stored(target).titles == ["initial commit"]
    assert folder_contents(tmp_path / output) == theirs


def test_a_commit_of_somebody_else_under_our_title_is_not_taken_for_ours(
    pair: Pair, hub: HubServer, empty: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault("POST .*/commit/", hold=True, status=500)
    process = started(start, hub, monkeypatch, *pair.args, "-o", "out", "--push-to-hub", empty)
    wait_for(lambda: bool(hub.log("POST .*/commit/")))
    hub.commit(empty, {"config.json": "{}"}, title="Merge by speechft-merge")
    hub.release()
    _, err = process.communicate(timeout=100)
    assert (process.returncode, "changed meanwhile" in err) == (1, True)


def test_an_upload_tells_how_much_of_it_is_done(pair: Pair, hub: HubServer, spawn: Run, tmp_path: Path) -> None:
    assert spawn(*pair.args, "--alpha", 0.337, "-o", "out").code == 0  # weights that the Hub does not have
    hub.delete("alice/told")
    script = (
        "from speechft_merge.push import prepare_push, push\n"
        "push('out', prepare_push('alice/told'), progress=lambda step: print(step.stage, step.done, step.total))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=plain_environment() | hub.env(), capture_output=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    sizes = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert {stage for stage, _, _ in told} == {"pushing to alice/told"}
    steps = [(int(read), int(total)) for _, read, total in told]
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] >= 0.9 * sum(sizes)
    assert max(sizes) < steps[-2][0] <= steps[-1][0], "the weights were counted as they were read"
