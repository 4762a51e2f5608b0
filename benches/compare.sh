#!/bin/sh
# Times our operations, or whole networks, and PyTorch's in alternating rounds and prints a table of ratios (ours / PyTorch;
# below 1 we are faster).
#
#   benches/compare.sh [ROUNDS] [FILTER]
#
# BENCH     ops (default) or models; every network runs in a process of its own, which has its peak memory
# DEVICE    cpu (default) or cuda
# COMPILE   1: beside torch.compile, too
# OURS      our program, built elsewhere, e.g. by scripts/build-cuda.sh [default: built here]
# BUDGET    seconds after which no further row begins
# PYTHON    [default: python3]   PROFILE  [default: release]
#
# Every cell is the median over rounds of a round's minimum. On the CPU both sides use two threads.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3} filter=${2:-} bench=${BENCH:-ops} python=${PYTHON:-python3} profile=${PROFILE:-release}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
export DEVICE="${DEVICE:-cpu}"
[ "$DEVICE" != cpu ] || export RAYON_NUM_THREADS=2
ours() {
    if [ -n "${OURS:-}" ]; then "$OURS" "$1"; else cargo bench --quiet --profile "$profile" --bench "$bench" -- "$1"; fi
}
[ -n "${OURS:-}" ] || cargo bench --quiet --profile "$profile" --bench "$bench" --no-run
if [ "$bench" = models ]; then LIST=1 ours "" | grep -F -- "$filter"; else echo "$filter"; fi >"$results/rows"
note() { sed "s/^/$1\t/" >>"$results/times"; }
end=$(($(date +%s) + ${BUDGET:-1000000}))
for round in $(seq "$rounds"); do
    while read -r row; do
        [ "$(date +%s)" -lt "$end" ] || continue
        ours "$row" | note ours
        COMPILE='' "$python" "benches/$bench.py" "$row" | note torch
        [ -z "${COMPILE:-}" ] || "$python" "benches/$bench.py" "$row" | note compile
    done <"$results/rows"
done
"$python" - "$results/times" <<'PYTHON'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    side, name, forward, _, both, _, *memory = line.rstrip("\n").split("\t")
    times.setdefault(name, {}).setdefault(side, []).append([float(value) for value in (forward, both, *memory)])
sides = [side for side in ("ours", "torch", "compile") if any(side in row for row in times.values())]
memory = any(len(found["ours"][0]) == 3 for found in times.values() if "ours" in found)
titles = [f"{side}: forward / both, ms" for side in sides] + [f"ratio to {side}: forward, both" for side in sides[1:]]
titles += [f"{side}: MiB" for side in sides if memory]
print("| " + " | ".join(["row", *titles]) + " |\n" + "|---" * (len(titles) + 1) + "|")
show = lambda form, value: "–" if value != value else f"{value:{form}}"
for name, found in times.items():
    middle = {side: [statistics.median(column) for column in zip(*found[side])] for side in sides if side in found}
    of = lambda side, index: middle[side][index] if side in middle else float("nan")
    cells = [f"{show('.2f', of(side, 0))} / {show('.2f', of(side, 1))}" for side in sides]
    cells += [", ".join(show(".2f", of("ours", i) / of(side, i)) for i in (0, 1)) for side in sides[1:]]
    cells += [show(".0f", of(side, 2)) for side in sides if memory]
    print("| " + " | ".join([name, *cells]) + " |")
PYTHON
