#!/bin/bash
# Each element of the array measures its share of the cells: sbatch sweep.sh BASE FINETUNED FOLDER [OPTIONS]
#SBATCH --job-name=sweep
#SBATCH --array=0-7
#SBATCH --time=60
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
##SBATCH --gpus-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it since Slurm 22.05

srun speechft-merge sweep "$1" "$2" -o "$3" "${@:4}" --task auto
