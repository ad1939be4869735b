"""Options of a merge that tests share."""

from speechft_merge import MergeOptions

UNSYNCED = MergeOptions(fsync=False)
"""Does not wait for the disk."""
