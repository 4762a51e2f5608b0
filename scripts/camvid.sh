#!/usr/bin/env bash
# The main path on real photos: CamVid day (labelled source) to dusk (ONE unlabelled photo), on the CPU.
#
#   scripts/camvid.sh CAMVID LITE0 OUTPUT
#
# CAMVID  folder with day/ and dusk/, each with images/*.jpg, labels/*.png and train.txt (CamVid, 11 classes, 11 = void)
# LITE0   ImageNet weights of EfficientNet-Lite0 (efficientnet-lite0-*.pth)
# OUTPUT  folder for runs and results; finished stages are kept, a stopped stage goes on
#
# Environment: SHOT (stem of the one photo, 0001TP_007500), SEED (0), DATUM (the program, target/release/datum).
set -euo pipefail
if [ $# -ne 3 ]; then sed -n '2,11p' "$0" >&2; exit 2; fi
camvid=$1 lite0=$2 out=$3
shot=${SHOT:-0001TP_007500} seed=${SEED:-0} datum=${DATUM:-target/release/datum}
for needed in "$camvid/day/train.txt" "$camvid/dusk/images/$shot.jpg" "$lite0" "$datum"; do
  [ -e "$needed" ] || { echo "camvid.sh: $needed is not there; nothing was run" >&2; exit 3; }
done
mkdir -p "$out/photos"
recipe=(--recipe camvid-dusk --seed "$seed")

# The unlabelled day photos, and the dusk photos but for the one that is used.
while read -r stem; do ln -sf "$(realpath "$camvid/day/images/$stem.jpg")" "$out/photos/"; done < "$camvid/day/train.txt"
grep -vx "$shot" "$camvid/dusk/train.txt" > "$out/others.txt"
printf 'extends = "camvid"\nroot = "%s"\n[splits]\nothers = "%s"\n' \
  "$(realpath "$camvid/dusk")" "$(realpath "$out/others.txt")" > "$out/dusk.toml"

# stage NAME VERB ARGUMENTS…: runs it once; goes on where it was stopped.
stage() {
  local name=$1 verb=$2; shift 2
  [ -e "$out/$name.done" ] && return
  local resume=(); [ -e "$out/$name/recipe.toml" ] && [ "$verb" != generate ] && resume=(--resume latest)
  "$datum" "$verb" "$@" --output "$out/$name" "${resume[@]}" && touch "$out/$name.done"
}
stage pretrain pretrain "${recipe[@]}" --images "$out/photos"
stage personalize personalize "${recipe[@]}" "$camvid/dusk/images/$shot.jpg" --base "$out/pretrain"
stage generate generate "${recipe[@]}" --prompts things.txt --model "$out/personalize"
mkdir -p "$out/shot" "$out/pseudo-target"
ln -sf "$(realpath "$camvid/dusk/images/$shot.jpg")" "$out/shot/"

adapt() {
  local name=$1; shift
  stage "$name" adapt "${recipe[@]}" --source "camvid=$camvid/day" --encoder-weights "$lite0" "$@"
  "$datum" evaluate --checkpoint "$out/$name" --dataset "$out/dusk.toml" --split others --quiet --json \
    --overlays "$out/$name/overlays" > "$out/$name.json"
}
adapt source-only --strategy source-only
adapt fda --strategy source-only --target "$out/shot" --set fourier=0.01
adapt datum --target "$out/generate/images"
adapt datum-fda --target "$out/generate/images" --set fourier=0.01
adapt all-dusk --target "camvid=$camvid/dusk"

for row in source-only fda datum datum-fda all-dusk; do
  python3 - "$row" "$out/$row.json" <<'PY' 2>/dev/null || { echo "$row: $(cat "$out/$row.json")"; }
import json, sys
scores = json.load(open(sys.argv[2]))
line = " ".join(f"{c['name']} {100 * c['iou']:.1f}" if c["iou"] is not None else f"{c['name']} -" for c in scores["classes"])
print(f"{sys.argv[1]:12} mIoU {100 * scores['mIoU']:.2f}  {line}")
PY
done
