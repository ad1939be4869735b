"""Files to the byte: what is written where, staging, checksums, commit."""
