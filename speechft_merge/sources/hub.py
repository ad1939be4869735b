"""Reads a repository on the Hub: pins one commit, lists it once, reads files by ranges or from the local cache."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_merge.errors import CheckpointError, NotFoundError, TemporaryError
from speechft_merge.sources.base import ByteSource, HubOrigin
from speechft_merge.sources.client import bound_client
from speechft_merge.sources.content import has_checksum, has_content, is_content
from speechft_merge.sources.download import Download
from speechft_merge.sources.hub_errors import hub_errors
from speechft_merge.sources.local import LocalFile, LocalFolder
from speechft_merge.sources.retries import persist

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

    from speechft_merge.sources.base import Folder
    from speechft_merge.sources.reference import HubReference

HEAD = 96 << 10
"""Bytes fetched at the first look into a file: holds most safetensors headers, and the pickle of most zips."""
TAIL = 128 << 10
"""Bytes fetched at the first look at a file's end: holds the directory of a zip of a thousand records."""
SMALL = 4 << 20
"""Bytes up to which a file is fetched whole, with one request."""


def open_hub_folder(reference: HubReference, download: bool = False) -> tuple[Folder, str | None]:
    """Return the folder of a repository that a reference names, pinned to one commit; and the file, if it names one.

    Args:
        reference: the repository, and perhaps revision and path.
        download: download weights to huggingface_hub's cache first, and read them there.

    Raises:
        NotFoundError, HubError, TemporaryError: see `hub_errors`.
    """
    bound_client()
    import huggingface_hub
    from huggingface_hub import constants

    inner = reference.path or ""
    with hub_errors(str(reference)):
        if constants.HF_HUB_OFFLINE:
            cached = huggingface_hub.snapshot_download(
                reference.repo, revision=reference.revision, local_files_only=True
            )
            return _open_cached(Path(cached), reference)
        info = _list_repository(reference)
    files = {str(sibling.rfilename): sibling for sibling in info.siblings or ()}
    folder = inner if any(name.startswith(inner + "/") for name in files) else inner.rpartition("/")[0]
    if inner and inner not in files and folder != inner:
        raise NotFoundError(f"{reference}: the repository has no {inner!r}", found=", ".join(sorted(files)[:12]))
    license_name = getattr(info.card_data, "license", None)
    file = inner.rpartition("/")[2] if inner in files else None
    return HubFolder(reference, str(info.sha), folder, files, download, license_name), file


def _list_repository(reference: HubReference) -> ModelInfo:
    """Return the commit and files of a revision. Retry, since the client does not and a busy Hub refuses this first."""
    from huggingface_hub import HfApi, constants

    return persist(
        lambda: HfApi().model_info(
            reference.repo, revision=reference.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    )


class HubFolder:
    """A folder of a repository at one commit."""

    def __init__(
        self, reference: HubReference, commit: str, inner: str, files: dict[str, RepoSibling], download: bool,
        license_name: object,
    ) -> None:  # fmt: skip
        self.reference = reference
        self.commit = commit
        self._inner = f"{inner}/" if inner else ""
        self._files = files
        self._download = download
        stated = license_name if isinstance(license_name, str) else None
        self.hub = HubOrigin(reference.repo, reference.revision or "main", commit, stated)

    @property
    def name(self) -> str:
        """Repository and commit."""
        return f"{self.reference.repo}@{self.commit[:8]}" + (f":{self._inner.rstrip('/')}" if self._inner else "")

    def names(self, inner: str = "") -> list[str]:
        """Return the names of the files in the folder, sorted; of one of its folders, with that before each name."""
        before = f"{inner}/" if inner else ""
        names = [name.removeprefix(self._inner) for name in self._files if name.startswith(self._inner + before)]
        return sorted(name for name in names if "/" not in name.removeprefix(before))

    def folders(self, inner: str = "") -> list[str]:
        """Return the names of the folders in it, sorted; or of those in one of its folders."""
        before = self._inner + (f"{inner}/" if inner else "")
        names = [name.removeprefix(before) for name in self._files if name.startswith(before)]
        return sorted({name.partition("/")[0] for name in names if "/" in name})

    def inside(self, name: str) -> str:
        """Return what a user types for one of its files or folders."""
        return str(replace(self.reference, path=self._inner + name))

    def leads_out(self, _name: str) -> bool:
        """Return False: what a repository holds lies in it."""
        return False

    def open(self, name: str) -> ByteSource:
        """Open one of its files: in the cache if it is there, else by ranges."""
        path = self._inner + name
        sibling = self._files.get(path)
        if sibling is None or sibling.size is None:
            raise NotFoundError(f"{self.name}: no file {name!r} in the repository")
        etag = sibling.lfs.sha256 if sibling.lfs else str(sibling.blob_id)
        label = f"{self.name}/{path}"
        cached = self._cached(path, etag, sibling.size)
        if cached is not None:
            return LocalFile(cached, label, etag)
        if self._download:
            return self._downloaded(path, label, etag)
        return HubFile(self.reference.repo, path, self.commit, sibling.size, etag, label)

    def _cached(self, path: str, etag: str, size: int) -> Path | None:
        """Return the file in huggingface_hub's cache: of this commit, or the same content of another."""
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(self.reference.repo, path, revision=self.commit)
        blob = Path(constants.HF_HUB_CACHE) / f"models--{self.reference.repo.replace('/', '--')}" / "blobs" / etag
        for candidate in (Path(found) if isinstance(found, str) else blob, blob):
            if candidate.is_file() and candidate.stat().st_size == size:
                return candidate
        return None

    def _downloaded(self, path: str, label: str, etag: str) -> LocalFile:
        """Fetch a file into the cache and open it, if its content is right: the client compares no checksum."""
        file = LocalFile(self._fetch_into_cache(path), label, etag)
        if has_checksum(etag) and not has_content(file):
            file.close()
            file.path.resolve().unlink(missing_ok=True)  # or the cache would give it to everyone
            raise wrong_content(label)
        return file

    def _fetch_into_cache(self, path: str) -> Path:
        from huggingface_hub import hf_hub_download

        with hub_errors(str(self.reference)):
            # by the given revision: only then does the cache record which commit it stands for
            found = hf_hub_download(self.reference.repo, path, revision=self.reference.revision)
            if self.commit not in found:  # the branch moved since it was listed
                found = hf_hub_download(self.reference.repo, path, revision=self.commit)
            return Path(found)


def _open_cached(snapshot: Path, reference: HubReference) -> tuple[Folder, str | None]:
    """Return the same from the cache alone: HF_HUB_OFFLINE is set."""
    path = snapshot / (reference.path or "")
    hub = HubOrigin(reference.repo, reference.revision or "main", snapshot.name, None)
    name = f"{hub.repo}@{hub.commit[:8]} (HF_HUB_OFFLINE is set; the cache)"
    if path.is_dir():
        return LocalFolder(path, name, hub), None
    if not path.exists():
        raise NotFoundError(
            f"HF_HUB_OFFLINE is set and {reference} is not in the cache",
            hint="download it where there is a network (--download), or unset HF_HUB_OFFLINE",
        )
    return LocalFolder(path.parent, name, hub), path.name


def wrong_content(name: str) -> TemporaryError:
    """Return the error for a file whose content is not what the Hub's checksum says."""
    return TemporaryError(f"{name} arrived damaged: its checksum is not the Hub's", hint="run again")


class HubFile(ByteSource):
    """A file at one commit, read by ranges."""

    seeks_cheaply = False

    def __init__(self, repo: str, path: str, commit: str, size: int, etag: str, label: str) -> None:
        self.name, self.size, self.identity = label, size, etag
        self._download = Download(repo, path, commit, size, etag, small=size <= SMALL)
        self._lock = threading.Lock()
        self._pages: list[tuple[int, bytes]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, from the pages fetched at the file's ends where these hold the bytes."""
        stop = offset + len(buffer)
        if stop > self.size:
            raise CheckpointError(f"{self.name} has {self.size} bytes; at least {stop} were expected")
        if not buffer:
            return
        page = self._page(offset, stop)
        if page is None:
            self._download.fetch(offset, buffer)
        else:
            start, data = page
            buffer[:] = data[offset - start : stop - start]

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with one request; for a reader that plans its requests itself."""
        self._download.fetch(offset, buffer)

    def close(self) -> None:
        """Free what was fetched."""
        self._pages.clear()

    def _page(self, offset: int, stop: int) -> tuple[int, bytes] | None:
        """Return the fetched page that holds these bytes; one at an end of the file is fetched if needed."""
        with self._lock:
            for start, data in self._pages:
                if start <= offset and stop <= start + len(data):
                    return start, data
            if self.size <= SMALL and self.size <= 2 * (HEAD + TAIL):
                start, end = 0, self.size
            elif offset < HEAD and stop <= HEAD:
                start, end = 0, HEAD
            elif offset >= self.size - TAIL:
                start, end = self.size - TAIL, self.size
            else:
                return None
            fetched = bytearray(end - start)
            self._download.fetch(start, memoryview(fetched))
            whole, identity = len(fetched) == self.size, self.identity or ""
            if whole and has_checksum(identity) and not is_content(identity, self.size, [bytes(fetched)]):
                raise wrong_content(self.name)
            self._pages.append((start, bytes(fetched)))
            return self._pages[-1]
