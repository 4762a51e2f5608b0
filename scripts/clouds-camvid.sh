#!/usr/bin/env bash
# CLOUDS on real photos: CamVid by day (labelled source) to dusk, of which no photo is seen, on the CPU, with the small models inside the
# program.
#
#   scripts/clouds-camvid.sh CAMVID OUTPUT [ROW…]
#
# CAMVID  folder with day/ and dusk/, each with images/*.jpg, labels/*.png and train.txt (CamVid, 11 classes, 11 = void)
# OUTPUT  folder for runs and the table; finished stages are kept, a stopped one goes on
# ROW     source-only  the source alone
#         none         + painted photos, pseudo-labels as they are
#         regions      + refinement by regions of like colour
#         published    as `regions`, the teacher labels the painted photos, as published, not the photos behind them
#         trainable    start, source-only and regions with a backbone that learns
#         without a ROW: all but the last
#
# Environment: SEED (0), RECIPE (clouds-camvid), START (steps of the training that all rows go on from, 400),
#              CLOUDS (target/release/clouds).
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,17p' "$0" >&2; exit 2; fi
camvid=$1 out=$2; shift 2
rows=("$@"); [ $# -gt 0 ] || rows=(source-only none regions published)
clouds=${CLOUDS:-target/release/clouds}
for needed in "$camvid/day/train.txt" "$camvid/dusk/train.txt" "$clouds"; do
  [ -e "$needed" ] || { echo "clouds-camvid.sh: $needed is not there; nothing was run" >&2; exit 3; }
done
mkdir -p "$out/photos"
shared=(--recipe "${RECIPE:-clouds-camvid}" --seed "${SEED:-0}")
while read -r stem; do ln -sf "$(realpath "$camvid/day/images/$stem.jpg")" "$out/photos/"; done < "$camvid/day/train.txt"

# stage NAME VERB ARGUMENTS…: runs it once; a stopped training goes on.
stage() {
  local name=$1 verb=$2; shift 2
  [ -e "$out/$name.done" ] && return
  local resume=()
  if [ "$verb" = train ]; then
    if compgen -G "$out/$name/checkpoints/*" > /dev/null; then resume=(--resume latest); else rm -rf "${out:?}/$name"; fi
  fi
  "$clouds" "$verb" "${shared[@]}" "$@" --output "$out/$name" "${resume[@]}" && touch "$out/$name.done"
}
train() { local name=$1; shift; stage "$name" train --source "camvid=$camvid/day" --backbone-weights nano "$@"; }
table=()
row() {
  local name=$1 text
  text=$("$clouds" evaluate --checkpoint "$out/$name" --dataset "camvid=$camvid/dusk" --split train --json --quiet \
    --overlays "$out/$name/overlays" | sed -n 's/.*"mIoU": *\([0-9.]*\).*/\1/p' | awk '{printf "%.1f", 100 * $1}')
  table+=("| $name | $text |")
}

stage prompts prompts
stage generate generate --prompts "$out/prompts" --model nano --init-images "$out/photos" --init-style prompt
train start --iterations "${START:-400}"
joint=(--stage joint --generated "$out/generate")
photos=(--init-images "$out/photos")
for name in "${rows[@]}"; do
  case $name in
    source-only) train source-only --init "$out/start" ;;
    none) train none "${joint[@]}" "${photos[@]}" --init "$out/start" --refiner none ;;
    regions) train regions "${joint[@]}" "${photos[@]}" --init "$out/start" ;;
    published) train published "${joint[@]}" --init "$out/start" ;;
    trainable)
      learns=(--set model.freeze_backbone=false)
      train start-trainable "${learns[@]}" --iterations "${START:-400}"
      train source-only-trainable "${learns[@]}" --init "$out/start-trainable"
      train regions-trainable "${learns[@]}" "${joint[@]}" "${photos[@]}" --init "$out/start-trainable"
      row start-trainable; row source-only-trainable; row regions-trainable
      continue ;;
    *) echo "clouds-camvid.sh: unknown row $name" >&2; exit 2 ;;
  esac
  row "$name"
done
row start
{ echo "| row | mIoU at dusk, % |"; echo "|---|---|"; printf '%s\n' "${table[@]}"; } | tee "$out/table.md"
