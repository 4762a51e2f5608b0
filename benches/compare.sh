#!/bin/sh
# Times our operations, or whole networks, and PyTorch's in alternating rounds and prints a table of ratios (ours / PyTorch;
# below 1 we are faster).
#
#   benches/compare.sh [ROUNDS] [FILTER]     BENCH=ops (or models) PYTHON=python3 PROFILE=release
#
# Every cell is the median over rounds of a round's minimum. Both sides use two threads.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3} filter=${2:-} bench=${BENCH:-ops} python=${PYTHON:-python3} profile=${PROFILE:-release}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
export RAYON_NUM_THREADS=2
cargo bench --quiet --profile "$profile" --bench "$bench" --no-run
for round in $(seq "$rounds"); do
    cargo bench --quiet --profile "$profile" --bench "$bench" -- "$filter" | sed 's/^/ours\t/' >>"$results/times"
    "$python" "benches/$bench.py" "$filter" | sed 's/^/torch\t/' >>"$results/times"
done
"$python" - "$results/times" <<'PYTHON'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    side, name, forward, _, both, _ = line.rstrip("\n").split("\t")
    times.setdefault(name, {}).setdefault(side, []).append((float(forward), float(both)))
print("| operation | ours: forward / both, ms | PyTorch: forward / both, ms | ratio forward | ratio both |\n|---|---|---|---|---|")
for name, sides in times.items():
    (a, b), (c, d) = ([statistics.median(column) for column in zip(*sides[side])] for side in ("ours", "torch"))
    row = f"| {name} | {a:.2f} / {b:.2f} | {c:.2f} / {d:.2f} | {a / c:.2f} | {b / d:.2f} |"
    print(row.replace("nan", "–"))
PYTHON
