"""Reads the bytes of files, on disk or on the Hub; knows nothing of tensors."""

from speechft_merge.sources.base import ByteSource, Folder, HubOrigin, SourceReader
from speechft_merge.sources.local import LocalFile, LocalFolder

__all__ = ["ByteSource", "Folder", "HubOrigin", "LocalFile", "LocalFolder", "SourceReader"]
