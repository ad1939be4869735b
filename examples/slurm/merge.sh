#!/bin/bash
# One merge: sbatch merge.sh BASE FINETUNED OUTPUT
#SBATCH --job-name=merge
#SBATCH --time=30
#SBATCH --cpus-per-task=4
#SBATCH --mem=2G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it since Slurm 22.05

srun speechft-merge merge "$1" "$2" --alpha 0.25 --max-shard-size 2GB -q -o "$3"
