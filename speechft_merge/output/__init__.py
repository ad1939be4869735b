"""Writes the output: files laid out to the byte, staging, checksums, commit."""
