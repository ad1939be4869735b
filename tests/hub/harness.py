"""The server as tests see it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.journal import Entry

WRITER = "hf_alice"
READER = "hf_alice_read"  # of the same user
STRANGER = "hf_bob"  # may write, but to bob's repositories only
UNKNOWN = "hf_unknown"
IMPATIENT = [sys.executable, str(Path(__file__).with_name("commands.py"))]
ACCOUNTS = (f"{WRITER}:alice:write", f"{READER}:alice:read", f"{STRANGER}:bob:write", "hf_me:me:write")

Files = Path | Mapping[str, Path | str | bytes]
StartHub = Callable[..., "HubServer"]


@dataclass(frozen=True)
class Stored:
    """What a revision of a repository holds. `files` are paths of the contents, not to be changed."""

    sha: str
    files: dict[str, Path]
    titles: list[str]  # of the commits, newest first
    refs: dict[str, str]
    private: bool


@dataclass(frozen=True)
class HubServer:
    """A running server. `home` is the HF_HOME of its clients."""

    endpoint: str
    home: Path
    process: subprocess.Popen[str]

    def env(self, token: str | None = WRITER, **more: str) -> dict[str, str]:
        """What a client's process must have in its environment, beside what it has. The caches lie in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token or "",
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.home / "hub"),
            "HF_XET_CACHE": str(self.home / "xet"),
            "HF_TOKEN_PATH": str(self.home / "token"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",  # on a busy machine an answer may take seconds
            "HF_HUB_ETAG_TIMEOUT": "30",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        } | more

    def repo(
        self,
        repo_id: str,
        files: Files,
        *,
        private: bool = False,
        gated: bool = False,
        branches: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> str:
        """Put a repository in the store, in place of any of that name; gives the SHA of its main branch.

        `files` is a folder, or contents and local paths by name. Large files are hard-linked: don't write into them.
        """
        with _paths(files) as paths:
            orders = {"private": private, "gated": gated, "branches": branches, "tags": tags}
            return str(self._control("repo", repo=repo_id, files=paths, **orders))

    def commit(self, repo_id: str, files: Files, *, revision: str = "main", title: str = "update") -> str:
        """Add or replace files of a repository, as somebody else would; gives the SHA of the commit."""
        with _paths(files) as paths:
            return str(self._control("commit", repo=repo_id, files=paths, revision=revision, title=title))

    def delete(self, repo_id: str) -> None:
        """Take a repository out of the store, if it is there."""
        self._control("delete", repo=repo_id)

    def stored(self, repo_id: str, revision: str = "main") -> Stored:
        """What is in the store, whoever may see it."""
        answer = self._control("stored", repo=repo_id, revision=revision)
        return Stored(**answer | {"files": {name: Path(path) for name, path in answer["files"].items()}})

    def fault(
        self,
        match: str,
        *,
        times: int = 1,
        skip: int = 0,
        sleep: float = 0,
        hold: bool = False,
        status: int | None = None,
        headers: Mapping[str, str] = {},
        body: str = '{"error": "injected"}',
        late: bool = False,
        drop_after: int | None = None,
        stall_after: int | None = None,
        stall: float = 0,
        corrupt: int | None = None,
        wrong_range: Literal["whole", "shifted", "short"] | None = None,
    ) -> None:
        """Spoil requests whose "METHOD path" `match` is found in; see `server.faults.Fault`."""
        self._control("fault", **{name: value for name, value in locals().items() if name != "self"})

    def release(self) -> None:
        """Let the requests go on that a fault holds."""
        self._control("release")

    def latency(self, seconds: float) -> None:
        """Let every answer wait first."""
        self._control("latency", seconds=seconds)

    def expire(self) -> None:
        """Make every signed URL that was given away invalid."""
        self._control("epoch")

    def log(self, match: str = "") -> list[Entry]:
        """The requests since the last reset whose "METHOD path" `match` is found in."""
        entries = [Entry(**entry) for entry in _ask(f"{self.endpoint}/_test/log", None)]
        return [entry for entry in entries if re.search(match, str(entry))]

    def reset(self) -> None:
        """Forget faults, log and latency; the repositories stay."""
        self._control("reset")

    def kill(self) -> None:
        """End the server at once, in the middle of whatever it does; its repositories are lost."""
        self.process.kill()
        self.process.wait()

    def _control(self, order: str, **details: Any) -> Any:
        return _ask(f"{self.endpoint}/_test/{order}", json.dumps(details).encode())


@contextlib.contextmanager
def serving(folder: Path, *, port: int = 0, xet: bool = False) -> Iterator[HubServer]:
    """Run a server that keeps its files in `folder`. What it prints is an error of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "server", str(folder), "--port", str(port), "--attached"]
    command += ["--xet"] if xet else []
    command += [option for account in ACCOUNTS for option in ("--token", account)]
    errors = folder / "errors.log"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
        )
    with process:
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            assert endpoint, errors.read_text()
            yield HubServer(endpoint, folder / "home", process)
        finally:
            process.kill()
    assert not errors.read_text(), errors.read_text()


@contextlib.contextmanager
def _paths(files: Files) -> Iterator[dict[str, str]]:
    """Local paths by name; contents are written down for as long as it takes."""
    if isinstance(files, Path):
        files = {str(path.relative_to(files)): path for path in sorted(files.rglob("*")) if path.is_file()}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (name, content) in enumerate(files.items()):
            if isinstance(content, Path):
                path = content.resolve()
            else:
                path = Path(folder, str(number))
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            paths[name] = str(path)
        yield paths


def _ask(url: str, data: bytes | None) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data), timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"{url}: {error.read().decode()}") from error
