#!/usr/bin/env bash
# Generates a pseudo-target set in shards: an array of SLURM tasks, each with its part of the images. First the number of shards,
# then what `datum generate` is to get:
#
#   sbatch --array=0-7 scripts/slurm-array.sh 8 --prompts things.txt --model runs/personalised --output runs/set
#
# The images of all shards lie in runs/set/images, ready for `datum adapt --target runs/set/images`; manifests and settings of
# shard I in runs/set/shards/I-of-8. Tasks that did not end go on when they are submitted again: sbatch --array=3 … 8 …
#SBATCH --job-name=datum-generate
#SBATCH --cpus-per-task=1
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
shards=${1:?first the number of shards}
shift
exec "${DATUM:-datum}" generate "$@" --shard "${SLURM_ARRAY_TASK_ID:?submit with sbatch --array=0-N}/$shards" \
    --threads "${SLURM_CPUS_PER_TASK:-1}" --no-progress
