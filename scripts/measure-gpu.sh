#!/bin/sh
# Measures on the machine's GPU, beside PyTorch (eager, and compiled) on the same card: the self-test of all operations, then the
# networks of benches/models.rs with their peak memory, within nine minutes. See docs/gpu.md.
#
# usage: scripts/measure-gpu.sh FOLDER [OUTPUT]
#   FOLDER   holds `models`, as scripts/build-cuda.sh leaves it in target/cuda/carry
#   OUTPUT   the table [default: gpu.md]
#
# DEVICE   cuda (default), or cpu to try the script      BUDGET   seconds for the networks (default: 390)
# FILTER   rows whose names hold this                    PYTHON   with torch, diffusers, … as in benches/models.py
# DTYPE    bf16 (default on a GPU): both sides compute in it with f32 weights in training; or f32
set -eu
folder=$(cd "$1" && pwd)
output=${2:-gpu.md}
export DEVICE="${DEVICE:-cuda}" BUDGET="${BUDGET:-390}" BENCH=models OURS="$folder/models" COMPILE="${COMPILE-1}"
[ "$DEVICE" = cpu ] || export DTYPE="${DTYPE:-bf16}"
{
    echo "# Measured $(date -u +%Y-%m-%d)"
    echo
    if [ "$DEVICE" = cpu ]; then grep -m1 'model name' /proc/cpuinfo; else
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    fi
    "${PYTHON:-python3}" -c 'import torch; print("torch", torch.__version__)'
    printf '\n## Self-test\n\n```\n'
    DTYPE='' SELF_TEST=1 "$folder/models"
    printf '```\n\n## Networks%s\n\n' "${DTYPE:+ in $DTYPE}"
    "$(dirname "$0")/../benches/compare.sh" 1 "${FILTER:-}"
} >"$output.part"
mv "$output.part" "$output"
cat "$output"
