#!/usr/bin/env bash
# The main path on real photos: CamVid day (labelled source) to dusk (ONE unlabelled photo), on the CPU.
#
#   scripts/camvid.sh CAMVID LITE0 OUTPUT
#
# CAMVID  folder with day/ and dusk/, each with images/*.jpg, labels/*.png and train.txt (CamVid, 11 classes, 11 = void)
# LITE0   ImageNet weights of EfficientNet-Lite0 (efficientnet-lite0-*.pth)
# OUTPUT  folder for runs and results; finished stages are kept, a stopped stage goes on
#
# Environment: SHOT (stem of the one photo, 0001TP_007500), SEEDS of the adaptations (0,1,2), RECIPE (camvid-dusk),
#              START (steps of the source-only training that all rows go on from, 1500), DATUM (target/release/datum).
set -euo pipefail
if [ $# -ne 3 ]; then sed -n '2,12p' "$0" >&2; exit 2; fi
camvid=$1 lite0=$2 out=$3
shot=${SHOT:-0001TP_007500} seeds=${SEEDS:-0,1,2} start=${START:-1500}
datum=${DATUM:-target/release/datum}
for needed in "$camvid/day/train.txt" "$camvid/dusk/images/$shot.jpg" "$lite0" "$datum"; do
  [ -e "$needed" ] || { echo "camvid.sh: $needed is not there; nothing was run" >&2; exit 3; }
done
mkdir -p "$out/photos" "$out/shot"
photo=$camvid/dusk/images/$shot.jpg
recipe=(--recipe "${RECIPE:-camvid-dusk}")

# The unlabelled day photos, the one dusk photo, and the other dusk photos for the evaluation.
while read -r stem; do ln -sf "$(realpath "$camvid/day/images/$stem.jpg")" "$out/photos/"; done < "$camvid/day/train.txt"
ln -sf "$(realpath "$photo")" "$out/shot/"
grep -vx "$shot" "$camvid/dusk/train.txt" > "$out/others.txt"
printf 'extends = "camvid"\nroot = "%s"\n[splits]\nothers = "%s"\n' \
  "$(realpath "$camvid/dusk")" "$(realpath "$out/others.txt")" > "$out/dusk.toml"

# stage NAME VERB ARGUMENTS…: runs it once; goes on where it was stopped.
stage() {
  local name=$1 verb=$2; shift 2
  [ -e "$out/$name.done" ] && return
  local resume=()
  if [ -e "$out/$name/recipe.toml" ] && [ "$verb" != generate ]; then
    # Stopped before anything was saved: there is nothing to go on from.
    if compgen -G "$out/$name/checkpoints/*" || compgen -G "$out/$name/seed-*"; then resume=(--resume latest); else rm -r "${out:?}/$name"; fi
  fi > /dev/null
  "$datum" "$verb" "$@" --output "$out/$name" "${resume[@]}" && touch "$out/$name.done"
}
stage pretrain pretrain "${recipe[@]}" --images "$out/photos"
# The class images that keep the model from forgetting streets are the day photos.
stage personalize personalize "${recipe[@]}" "$photo" --base "$out/pretrain" --class-images "$out/photos"
from_photos=(--prompts things.txt --model "$out/personalize" --init-images "$out/photos" --init-style "$photo")
stage generate generate "${recipe[@]}" "${from_photos[@]}"
# The same photos in the same light without the diffusion model's part: only through the autoencoder.
stage light generate "${recipe[@]}" "${from_photos[@]}" --strength 0

# with_photo SET: a target set of its pictures, with the photo itself as every fifth one.
with_photo() {
  mkdir -p "$out/$1-photo"
  ln -sf "$(realpath "$out/$1/images")"/*.png "$out/$1-photo/"
  local count
  count=$(find "$out/$1/images" -name '*.png' | wc -l)
  for i in $(seq $((count / 4))); do ln -sf "$(realpath "$photo")" "$out/$1-photo/photo_$i.jpg"; done
}
with_photo generate
with_photo light

# All rows go on from one source-only training, so that they share what they know of the source.
source=(--source "camvid=$camvid/day" --encoder-weights "$lite0")
stage start adapt "${recipe[@]}" "${source[@]}" --strategy source-only --iterations "$start" \
  --set learning_rate=1e-3 --set warmup=60

row() {
  local name=$1; shift
  stage "$name" adapt "${recipe[@]}" "${source[@]}" --init "$out/start" --seeds "$seeds" "$@"
  echo "== $name"
  "$datum" evaluate --checkpoint "$out/$name" --dataset "$out/dusk.toml" --split others --quiet \
    --overlays "$out/$name/overlays" | tee "$out/$name.txt"
}
row source-only --strategy source-only
row fda --strategy source-only --target "$out/shot" --set fourier=0.01
row photo-fda --target "$out/shot" --set fourier=0.01
row generated --target "$out/generate/images"
row light-fda --target "$out/light-photo" --set fourier=0.01
row datum --target "$out/generate-photo" --set fourier=0.01
row all-dusk --target "camvid=$camvid/dusk"
