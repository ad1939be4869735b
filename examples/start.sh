#!/bin/sh
# Make the environment, and merge the pair of models that ships with this repository.
extra=cka
. "$(dirname "$0")/environment.sh"

set -- .venv/bin/speechft-merge examples/pair/base examples/pair/finetuned --alpha 0.25 --cka --overwrite -o merged
say "merging the pair in examples/pair: $*"
"$@"

say "done: the model is in merged, the figure is merged/similarity.png"
say "next: . .venv/bin/activate; speechft-merge --help"
