#!/bin/sh
# Make the environment, and run the tests: all, or what pytest's arguments select.
extra=test
. "$(dirname "$0")/../examples/environment.sh"

say "running the tests: python -m pytest -q -n 2 $*"
exec .venv/bin/python -m pytest -q -n 2 "$@"
