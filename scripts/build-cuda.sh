#!/bin/sh
# Builds datum for NVIDIA GPUs on a Linux machine (x86-64) that needs neither a GPU nor CUDA: nvcc comes from PyPI, and CUDA's
# libraries are looked up when the program runs. See docs/gpu.md.
#
# usage: scripts/build-cuda.sh [--check | --dev]
#   --check  only check the Rust code, without nvcc (minutes instead of tens of minutes)
#   --dev    build with the dev profile instead of release
#
# Leaves what to carry to the machine with the GPU in target/cuda/carry: `datum`, and `models`, all that scripts/measure-gpu.sh needs.
#
# CUDA_COMPUTE_CAP   kernels of candle for this GPU generation: 90 for H100 and H200 only (default), 80 for all since A100
# CARGO_TARGET_DIR   where to build (default: target/cuda/build)
# PYTHON             a Python with pip (default: python3)
set -eu
cd "$(dirname "$0")/.."
work=$PWD/target/cuda
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$work/build}"
python=${PYTHON:-python3}
mkdir -p "$work"

if [ "${1:-}" = --check ]; then
    mkdir -p "$work/stand-in/bin" "$work/stand-in/include"
    cp scripts/cuda/nvcc-stand-in "$work/stand-in/bin/nvcc"
    export CUDA_HOME="$work/stand-in" PATH="$work/stand-in/bin:$PATH"
    exec cargo check --features cudnn,nccl --lib --bins
fi

# 13.0: drivers since 580 take its code; that of later compilers needs later drivers.
if [ ! -x "$work/toolkit/nvidia/cu13/bin/nvcc" ]; then
    "$python" -m pip install --quiet --no-deps --target "$work/toolkit" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
fi
export CUDA_HOME="$work/toolkit/nvidia/cu13"
export PATH="$CUDA_HOME/bin:$PATH"

profile=release folder=release
[ "${1:-}" != --dev ] || { profile=dev; folder=debug; }

# The functions of CUDA that cudarc, the bindings, refers to: `nm --undefined-only` of its dev build.
"$python" scripts/cuda/trampolines.py "$work/stubs" "$CUDA_HOME/lib/libcudart_static.a" <scripts/cuda/symbols.txt
LIBRARY_PATH="$work/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}" cargo build --profile "$profile" --features cudnn --bin datum --bench models

mkdir -p "$work/carry"
bench=$(find "$CARGO_TARGET_DIR/$folder/deps" -name 'models-*' -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
strip -o "$work/carry/models" "$bench"
strip -o "$work/carry/datum" "$CARGO_TARGET_DIR/$folder/datum"
program=$work/carry/datum
echo "built: $program, $(wc -c <"$program") bytes"
if ldd "$program" | grep -E 'libcu|libnv'; then
    echo "error: the program needs CUDA's libraries to start" >&2
    exit 1
fi
"$program" --version
