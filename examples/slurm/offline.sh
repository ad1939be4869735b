#!/bin/bash
# For compute nodes without a network. Run on the login node: ./offline.sh BASE FINETUNED OUTPUT REPO
set -euo pipefail
folder=$(dirname "$0")

hf download -q "$1" && hf download -q "$2" # into $HF_HOME, which the nodes must see
HF_HUB_OFFLINE=1 sbatch --wait "$folder/merge.sh" "$1" "$2" "$3"
speechft-merge push "$3" "$4"
