"""The command line: parses arguments, calls the library, prints and exits. Nothing else does any of these."""
