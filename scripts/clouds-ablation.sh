#!/usr/bin/env bash
# What each part of CLOUDS is worth on drawn streets: rows that go on from the folder of a finished `clouds demo`.
#
#   scripts/clouds-ablation.sh DEMO [ROW…]
#
# DEMO  folder of the demo; rows come into DEMO/ablation, finished ones are kept, a stopped one goes on
# ROW   none           generated pictures, pseudo-labels as they are
#       nano           with refinement by the small Segment Anything inside the program
#       pictures       the teacher labels the pictures, as published, not the photos they were painted from
#       pictures-none  the same, pseudo-labels as they are
#       pictures-nano  the same, with the small Segment Anything
#       few            a quarter of the generated pictures, with refinement
#       trainable      start, source-only and joint with a backbone that learns (from the same CLIP), with refinement and without
#       without a ROW: all
#
# Environment: SEED (the demo's, 0), RECIPE (clouds-demo), START (steps of the demo's start, 800), CLOUDS (target/release/clouds).
set -euo pipefail
if [ $# -lt 1 ]; then sed -n '2,16p' "$0" >&2; exit 2; fi
demo=$1; shift
rows=("$@"); [ $# -gt 0 ] || rows=(none nano pictures pictures-none pictures-nano few trainable)
clouds=${CLOUDS:-target/release/clouds} out=$demo/ablation
for needed in "$demo/joint.done" "$clouds"; do
  [ -e "$needed" ] || { echo "clouds-ablation.sh: $needed is not there; nothing was run" >&2; exit 3; }
done
mkdir -p "$out/few/images"
shared=(--recipe "${RECIPE:-clouds-demo}" --seed "${SEED:-0}" --source "street=$demo/source")

# train NAME ARGUMENTS…: trains once; goes on where it was stopped.
train() {
  local name=$1; shift
  [ -e "$out/$name.done" ] && return
  local resume=()
  if compgen -G "$out/$name/checkpoints/*" > /dev/null; then resume=(--resume latest); else rm -rf "${out:?}/$name"; fi
  "$clouds" train "${shared[@]}" "$@" --output "$out/$name" "${resume[@]}" && touch "$out/$name.done"
}
# score NAME FOLDER: a line of the table, mIoU in %.
score() {
  local line="| $1 |" name
  for name in night fog rain snow unseen; do
    line+=" $("$clouds" evaluate --checkpoint "$2" --dataset "$demo/$name.toml" --json --quiet |
      sed -n 's/.*"mIoU": *\([0-9.]*\).*/\1/p' | awk '{printf "%.1f", 100 * $1}') |"
  done
  echo "$line"
}

frozen=(--backbone-weights nano)
photos=(--init-images "$demo/source/images")
joint=(--stage joint --generated "$demo/generate" "${photos[@]}")
for row in "${rows[@]}"; do
  case $row in
    none) train none "${joint[@]}" "${frozen[@]}" --init "$demo/start" --refiner none ;;
    pictures) train joint-pictures --stage joint --generated "$demo/generate" "${frozen[@]}" --init "$demo/start" ;;
    pictures-none)
      train none-pictures --stage joint --generated "$demo/generate" "${frozen[@]}" --init "$demo/start" --refiner none ;;
    nano) train nano "${joint[@]}" "${frozen[@]}" --init "$demo/start" --refiner nano ;;
    pictures-nano)
      train nano-pictures --stage joint --generated "$demo/generate" "${frozen[@]}" --init "$demo/start" --refiner nano ;;
    few)
      while read -r picture; do ln -sf "$(realpath "$picture")" "$out/few/images/"; done < <(
        find "$demo/generate/images" -name '*.png' | sort -V | awk 'NR % 4 == 1')
      cp "$demo/generate/manifest.jsonl" "$out/few/"
      # As many samples of them as of all.
      train joint-few --stage joint --generated "$out/few" "${photos[@]}" "${frozen[@]}" --init "$demo/start" \
        --set data.generated_factor=4.8 ;;
    trainable)
      learns=("${frozen[@]}" --set model.freeze_backbone=false)
      train start-trainable "${learns[@]}" --iterations "${START:-800}"
      train source-only-trainable "${learns[@]}" --init "$out/start-trainable"
      train joint-trainable "${learns[@]}" "${joint[@]}" --init "$out/start-trainable"
      train none-trainable "${learns[@]}" "${joint[@]}" --init "$out/start-trainable" --refiner none ;;
    *) echo "clouds-ablation.sh: unknown row $row" >&2; exit 2 ;;
  esac
done
{
  echo "| mIoU, % | night | fog | rain | snow | all |"
  echo "|---|---|---|---|---|---|"
  score "source only" "$demo/source-only"
  [ ! -e "$out/none.done" ] || score "+ generated pictures" "$out/none"
  score "+ refinement (regions)" "$demo/joint"
  [ ! -e "$out/nano.done" ] || score "+ refinement (nano)" "$out/nano"
  [ ! -e "$out/joint-pictures.done" ] || score "the teacher labels the pictures" "$out/joint-pictures"
  [ ! -e "$out/none-pictures.done" ] || score "the same without refinement" "$out/none-pictures"
  [ ! -e "$out/nano-pictures.done" ] || score "the same with nano" "$out/nano-pictures"
  [ ! -e "$out/joint-few.done" ] || score "a quarter of the pictures" "$out/joint-few"
  [ ! -e "$out/joint-trainable.done" ] || score "trainable: source only" "$out/source-only-trainable"
  [ ! -e "$out/none-trainable.done" ] || score "trainable: + generated" "$out/none-trainable"
  [ ! -e "$out/joint-trainable.done" ] || score "trainable: + generated + refinement" "$out/joint-trainable"
} | tee "$out/table.md"
