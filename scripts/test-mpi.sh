#!/usr/bin/env bash
# Two processes against one with the doubled batch: the losses of every step must agree to 1e-5. Then what happens around the
# training: one run folder, resuming, Ctrl-C, errors. Skips where there is no mpirun. See docs/clusters.md.
#
# usage: scripts/test-mpi.sh [PROGRAM]
#   PROGRAM  a `datum` built with `--features mpi` (default: builds target/debug/datum)
set -euo pipefail
cd "$(dirname "$0")/.."
command -v mpirun >/dev/null || { echo "skipped: no mpirun"; exit 0; }
program=${1:-}
if [ -z "$program" ]; then
    cargo build --features mpi --bin datum
    program=${CARGO_TARGET_DIR:-target}/debug/datum
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Open MPI refuses to work for root without this, and kills one second after Ctrl-C without the last.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_odls_base_sigkill_timeout=60
mpi() { mpirun --quiet --oversubscribe -n 2 "$program" "$@"; }

# Scenes to learn from, drawn by the program itself.
"$program" dataset render-street --count 8 --set size.width=128 --set size.height=64 --output "$work/street" --quiet >/dev/null
photo=$(find "$work/street" -path '*images*' -name '*.png' | sort | head -1)

failed=0
# compare NAME: the losses in one/ and two/ of that name.
compare() {
    python3 - "$work/$1-one" "$work/$1-two" "$1" <<'PYTHON' || failed=1
import glob, json, sys

one, two, name = sys.argv[1:]
worst, steps = 0.0, 0
for path in sorted(glob.glob(one + "/metrics*.jsonl")):
    rows = [[json.loads(line) for line in open(folder + path[len(one):])] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) > 0, path
    for a, b in zip(*rows):
        assert a.keys() == b.keys(), (a, b)
        worst = max(worst, *(abs(a[key] - b[key]) for key in a if "loss" in key))
        steps += 1
assert steps > 0, "no steps"
print(f"{'ok    ' if worst <= 1e-5 else 'FAILED'} {name}: {steps} steps, losses differ by at most {worst:.2e}")
sys.exit(worst > 1e-5)
PYTHON
}
# equal NAME KEY-OF-BATCH ARGUMENTS…: one process with batches of 4, two with batches of 2.
equal() {
    local name=$1 batch=$2
    shift 2
    "$program" "$@" --set "$batch=4" --output "$work/$name-one" --quiet >/dev/null
    mpi "$@" --set "$batch=2" --output "$work/$name-two" --quiet >/dev/null
    compare "$name"
}
personalize=(personalize "$photo" --base nano --resolution 64 --crop-size 64 --steps 6)
equal full train_batch_size "${personalize[@]}" --gradient-accumulation-steps 2
equal lora train_batch_size "${personalize[@]}" --method lora
equal prior train_batch_size "${personalize[@]}" --with-prior-preservation --class-prompt "a street" --num-class-images 2
pretrain=(pretrain --images "$(dirname "$photo")" --set size.width=64 --set size.height=64 --set vae.crop=32 --set vae.steps=4)
equal denoiser unet.batch_size "${pretrain[@]}" --base nano --set unet.steps=4
# Networks without batch norm would agree here too; with it each process has its own statistics.
adapt=(adapt --source "$work/street" --encoder mit-b0 --decoder segformer --iterations 4 --set crop.width=64 --set crop.height=64)
mpi "${adapt[@]}" --target "$work/street" --output "$work/adapt" --quiet >/dev/null
echo "ok     adapt: $(wc -l <"$work/adapt/metrics.jsonl") steps with batch norm of each process"
[ -f "$work/adapt/segmenter.safetensors" ]

check() { if eval "$2"; then echo "ok     $1"; else echo "FAILED $1"; failed=1; fi; }
# A run of two processes that is stopped and goes on ends as one that was not stopped.
long=("${personalize[@]}" --method lora --steps 40 --set train_batch_size=1)
mpi "${long[@]}" --output "$work/whole" --quiet >/dev/null
mpi "${long[@]}" --output "$work/stopped" --quiet >/dev/null 2>"$work/stopped.txt" &
launcher=$!
for _ in $(seq 600); do
    [ "$(cat "$work/stopped/metrics.jsonl" 2>/dev/null | wc -l)" -lt 3 ] || break
    sleep 0.1
done
kill -INT "$launcher"
code=0; wait "$launcher" || code=$?
check "Ctrl-C ends all processes with 130" '[ "$code" = 130 ]'
check "one message about it" '[ "$(grep -c "^error: interrupted" "$work/stopped.txt")" = 1 ]'
check "stopped before the end" '[ "$(wc -l <"$work/stopped/metrics.jsonl")" -lt 40 ]'
mpi "${long[@]}" --output "$work/stopped" --resume latest --quiet >/dev/null
check "a resumed run ends as an uninterrupted one" 'cmp -s "$work/whole/metrics.jsonl" "$work/stopped/metrics.jsonl"'
code=0; mpi personalize "$work/none.png" --base nano >"$work/out.txt" 2>"$work/error.txt" || code=$?
check "an error of all processes is told once, with its exit code" '[ "$code" = 3 ] && [ "$(grep -c "^error: " "$work/error.txt")" = 1 ]'
exit "$failed"
