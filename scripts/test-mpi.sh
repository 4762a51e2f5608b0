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
# Open MPI refuses to work for root without the first two, and kills one second after Ctrl-C without the last.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_odls_base_sigkill_timeout=5
mpi=(mpirun --quiet --oversubscribe -n 2 "$program")

# Scenes to learn from, drawn by the program itself.
"$program" dataset render-street --count 8 --size 128x64 --output "$work/street" --quiet >/dev/null
photo=$(find "$work/street/images" -name '*.png' | sort | head -1)

failed=0
check() { if eval "$2"; then echo "ok     $1"; else echo "FAILED $1"; failed=1; fi; }
# compare NAME: the losses of all steps in NAME-one and NAME-two.
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
        worst = max(worst, abs(a["loss"] - b["loss"]))
        steps += 1
assert steps > 0, "no steps"
print(f"{'ok    ' if worst <= 1e-5 else 'FAILED'} {name}: {steps} steps, losses differ by at most {worst:.1e}")
sys.exit(worst > 1e-5)
PYTHON
}
# equal NAME "KEYS OF BATCH SIZES" ARGUMENTS…: one process with batches of 4, two with batches of 2.
equal() {
    local name=$1 keys=$2 four=() two=()
    shift 2
    for key in $keys; do four+=(--set "$key=4") two+=(--set "$key=2"); done
    "$program" "$@" "${four[@]}" --output "$work/$name-one" --quiet >/dev/null
    "${mpi[@]}" "$@" "${two[@]}" --output "$work/$name-two" --quiet >/dev/null
    compare "$name"
}
personalize=(personalize "$photo" --base nano --resolution 64 --crop-size 64)
equal full train_batch_size "${personalize[@]}" --steps 6 --gradient-accumulation-steps 2
equal lora train_batch_size "${personalize[@]}" --steps 6 --method lora
equal prior train_batch_size "${personalize[@]}" --steps 6 --with-prior-preservation --class-prompt "a street" --num-class-images 2
equal pretrain "vae.batch_size unet.batch_size" pretrain --images "$work/street/images" --set size.width=64 --set size.height=64 \
    --set vae.crop=32 --set vae.steps=6 --set unet.steps=6
# With batch norm in encoder and head: its statistics are those of all processes.
equal adapt batch_size adapt --source "street=$work/street" --target "$work/street/images" --encoder efficientnet-lite0 \
    --decoder daformer --set decoder_channels=32 --iterations 6 --set crop.width=64 --set crop.height=64

# A run of two processes that is stopped and goes on ends as one that was not stopped. A signal to one process stops both.
long=("${personalize[@]}" --method lora --steps 100)
stop() { # stop FOLDER WHOM: starts a run and sends SIGINT to the launcher or SIGTERM to a process, once steps are done
    "${mpi[@]}" "${long[@]}" --output "$work/$1" --quiet >/dev/null 2>"$work/$1.txt" &
    local launcher=$!
    while kill -0 "$launcher" 2>/dev/null && [ "$(cat "$work/$1/metrics.jsonl" 2>/dev/null | wc -l)" -lt 3 ]; do sleep 0.1; done
    if [ "$2" = launcher ]; then kill -INT "$launcher"; else kill -TERM "$(pgrep -P "$launcher" | tail -1)"; fi
    code=0
    wait "$launcher" || code=$?
}
stop stopped process
check "a signal to one process ends all with 130 (found $code)" '[ "$code" = 130 ]'
check "with one message" '[ "$(grep -c "^error: interrupted" "$work/stopped.txt")" = 1 ] && [ "$(grep -c "^error" "$work/stopped.txt")" = 1 ]'
check "before the end" '[ "$(wc -l <"$work/stopped/metrics.jsonl")" -lt 100 ]'
"${mpi[@]}" "${long[@]}" --output "$work/whole" --quiet >/dev/null
"${mpi[@]}" "${long[@]}" --output "$work/stopped" --resume latest --quiet >/dev/null
check "a resumed run ends as an uninterrupted one" 'cmp "$work/whole/metrics.jsonl" "$work/stopped/metrics.jsonl"'
long=("${personalize[@]}" --method lora --steps 100000)
stop pressed launcher
check "Ctrl-C at mpirun is passed on (exit code $code)" '[ "$code" != 0 ] && [ "$(grep -c "^error: interrupted" "$work/pressed.txt")" = 1 ]'
check "and the state is saved" 'ls "$work/pressed/checkpoints/step-"*/state.json >/dev/null'
code=0; "${mpi[@]}" personalize "$work/none.png" --base nano --output "$work/none" >/dev/null 2>"$work/error.txt" || code=$?
check "an error ends all with its exit code (found $code)" '[ "$code" = 3 ]'
check "and is told once" '[ "$(grep -c "^error: " "$work/error.txt")" = 1 ]'
exit "$failed"
