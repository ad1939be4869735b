"""Where the bytes are. Nothing in here knows what a tensor is."""

from speechft_merge.sources.base import ByteSource, Folder, HubOrigin, SourceReader
from speechft_merge.sources.local import LocalFile, LocalFolder

__all__ = ["ByteSource", "Folder", "HubOrigin", "LocalFile", "LocalFolder", "SourceReader"]
