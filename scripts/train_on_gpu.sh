#!/bin/bash
# Trains nano for a given time on one device, for a machine that is lent for a quarter of an hour:
# renders pictures on all cores if DATA has none, measures the speed of each resolution, and sets
# the steps so that each round ends in time with a learning rate of zero. Each round starts from the
# export of the one before, the first from INIT.
#
#   scripts/train_on_gpu.sh DATA EVAL OUT
#
# DATA: folder of shards, or an empty or missing one. EVAL: folder of held-out shards, for instance
# of experiments/real_scenes.py. OUT: run folders, speed-SIDE and SIDE. Environment:
#   MINUTES=10     of training, divided evenly between the rounds; measuring and rendering not counted
#   SIDES="112 168 224"   shorter sides, multiples of 14
#   BATCH=64  RATE=3e-4  PROBE=40   batch size, peak learning rate, steps to measure the speed
#   SCENES=20000   pictures to render;   WORLDS=FOLDER   half of them of these worlds
#   INIT=nano      weights to start from
set -euo pipefail
data=$1 eval=$2 out=$3
minutes=${MINUTES:-10} sides=${SIDES:-112 168 224} batch=${BATCH:-64} rate=${RATE:-3e-4}
probe=${PROBE:-40} scenes=${SCENES:-20000} init=${INIT:-nano}
dafast="${PYTHON:-python} -m dafast"

if [ -z "$(find "$data" -name "*.tar" 2>/dev/null)" ]; then
  half=$scenes
  if [ -n "${WORLDS:-}" ]; then
    half=$((scenes / 2))
    $dafast synth --worlds "$WORLDS" --scenes $half --size 256 192 --workers "$(nproc)" --out "$data/worlds"
  fi
  $dafast synth --scenes $half --size 256 192 --workers "$(nproc)" --out "$data/procedural"
fi
links=$out/shards  # one folder with all shards
mkdir -p "$links"
for shard in "$data"/*.tar "$data"/*/*.tar; do
  [ -f "$shard" ] || continue
  ln -sf "$(realpath "$shard")" "$links/$(basename "$(dirname "$shard")")-$(basename "$shard")"
done

round() { # folder, shorter side, start, steps, more options
  local side=$2 wide=$(($2 * 4 / 3 / 14 * 14))
  $dafast train --config nano-teacher --out "$1" --model.encoder-init random --model.init "$3" \
    --steps "$4" --max-minutes 0 --batch-size "$batch" --threads 0 --seed "$side" \
    --optim.encoder-lr "$rate" --optim.decoder-lr "$rate" --optim.schedule linear \
    --optim.warmup-steps $(($4 / 20)) \
    --gradient-matching 0.5 --ema 0.99 --data.path "$links" --data.workers "$(nproc)" \
    --data.shapes $side $side $side $wide $wide $side "${@:5}"
}

now() { date +%s.%N; }
count=$(wc -w <<<"$sides")
for side in $sides; do
  # Two lengths, so that the time to start does not count.
  begin=$(now)
  round "$out/speed-$side-a" "$side" "$init" "$probe" --data.eval-path ""
  middle=$(now)
  round "$out/speed-$side-b" "$side" "$init" $((3 * probe)) --data.eval-path ""
  end=$(now)
  steps=$(awk -v m="$minutes" -v n="$count" -v p="$probe" -v a="$begin" -v b="$middle" -v c="$end" \
    'BEGIN { t = ((c - b) - (b - a)) / (2 * p); if (t < 1e-4) t = 1e-4; s = int(60 * m / n / t)
             print (s > 10 ? s : 10) }')
  echo "side $side: $steps steps"
  every=$((steps / 4 > 0 ? steps / 4 : 1))
  round "$out/$side" "$side" "$init" "$steps" --data.eval-path "$eval" --export-float16 \
    --checkpoint-every $every --eval-every $every
  init=$out/$side/export
done
echo "the model is in $init"
