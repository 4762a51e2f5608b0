#!/usr/bin/env bash
# Tries scripts/slurm-array.sh, and training with srun, on a SLURM cluster of this one machine that is started for it and ended
# after it, with all its files in a temporary folder. Skips where there is no SLURM (Debian: slurm-wlm, munge). See docs/clusters.md.
#
# usage: scripts/test-slurm.sh [PROGRAM]
#   PROGRAM  a `datum` (default: builds target/debug/datum); one with the feature `mpi` is also tried with srun
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
for needed in munged slurmctld slurmd sbatch; do
    command -v "$needed" >/dev/null || { echo "skipped: no $needed"; exit 0; }
done
program=${1:-}
if [ -z "$program" ]; then
    cargo build --bin datum
    program=${CARGO_TARGET_DIR:-target}/debug/datum
fi
program=$(realpath "$program")

work=$(mktemp -d) daemons=()
finish() {
    [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
chmod 755 "$work"
mkdir "$work/state" "$work/spool" "$work/munge"
chmod 711 "$work/munge"
dd if=/dev/urandom of="$work/munge/key" bs=128 count=1 status=none
chmod 400 "$work/munge/key"
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --seed-file="$work/munge/seed" >"$work/munge.txt" 2>&1 &
daemons+=($!)
processors=$(nproc)
user=$(id -un)
export SLURM_CONF=$work/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$processors State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld -D >"$work/slurmctld.txt" 2>&1 &
daemons+=($!)
slurmd -D >"$work/slurmd.txt" 2>&1 &
daemons+=($!)
for _ in $(seq 60); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 0.5
done
sinfo --noheader --format=%T | grep -q idle || { tail -n 5 "$work"/*.txt; echo "FAILED: SLURM does not start here"; exit 1; }
echo "ok     $(sinfo --version) with one node of $processors processors"

failed=0
check() { if eval "$2"; then echo "ok     $1"; else echo "FAILED $1"; failed=1; fi; }
export DATUM=$program
generate=(--prompts street.txt --model nano --count 6 --steps 4 --scheduler ddim)

# Three shards as an array, and the same set by one process.
sbatch --quiet --wait --array=0-2 --chdir="$work" "$PWD/scripts/slurm-array.sh" 3 "${generate[@]}" --output "$work/set" ||
    { cat "$work"/*.out; failed=1; }
"$program" generate "${generate[@]}" --output "$work/one" --quiet >/dev/null
check "an array of three tasks makes the images of one process" 'diff -r "$work/one/images" "$work/set/images"'
sed 's|"\.\./\.\./|"|' "$work"/set/shards/?-of-3/manifest.jsonl | sort >"$work/merged.jsonl"
check "the manifests of the shards merge to that of one process" 'sort "$work/one/manifest.jsonl" | cmp -s - "$work/merged.jsonl"'
# A task that is submitted again goes on: the image that is missing is made, the other one kept.
second=$(find "$work/set/images" -type f -name '*.png' | sort | sed -n 2p)
rm "$second"
sbatch --quiet --wait --array=1 --chdir="$work" "$PWD/scripts/slurm-array.sh" 3 "${generate[@]}" --output "$work/set" || failed=1
check "a task submitted again makes what is missing" 'diff -r "$work/one/images" "$work/set/images" && grep -q "1 of 2 images" "$work"/*_1.out'

# Two tasks that train together.
train=("$program" personalize "$(find "$work/one/images" -name '*.png' | sort | head -1)" --base nano --method lora --resolution 64
    --crop-size 64 --steps 3 --threads 1 --quiet)
"${train[@]}" --set train_batch_size=2 --output "$work/alone" >/dev/null
code=0
srun --mpi=pmix --ntasks=2 "${train[@]}" --set train_batch_size=1 --output "$work/both" >/dev/null 2>"$work/both.txt" || code=$?
if grep -q -- "--features mpi" "$work/both.txt"; then
    echo "skipped: training with srun (the program has no feature mpi); it says so with exit code $code"
else
    check "srun trains with two tasks" '[ "$code" = 0 ] && [ "$(wc -l <"$work/both/metrics.jsonl")" = 3 ]'
    python3 - "$work/alone/metrics.jsonl" "$work/both/metrics.jsonl" <<'PYTHON' || failed=1
import json, sys

one, two = ([json.loads(line)["loss"] for line in open(path)] for path in sys.argv[1:])
worst = max(abs(a - b) for a, b in zip(one, two, strict=True))
print(f"{'ok    ' if worst <= 1e-5 else 'FAILED'} with the losses of one process: they differ by at most {worst:.2e}")
sys.exit(worst > 1e-5)
PYTHON
fi
exit "$failed"
