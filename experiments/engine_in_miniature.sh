#!/usr/bin/env bash
# Runs the whole engine of Depth Anything on one small machine: shards, a teacher on labeled images,
# its labels for photographs, a student on both, and the scores of both.
#
#   experiments/engine_in_miniature.sh [FOLDER_OF_PHOTOS ...]
#
# Everything goes to $WORK (default: runs/miniature of the repository). The same command resumes.
# Without folders it uses the example photos and the installed wallpapers. Photographs are cropped
# at random, so a few are enough to start; more are better.
#
# It needs dafast[synth,train,eval]. Its models show how the engine works, not how good the method
# is: that takes millions of images. The encoder of the embedded model replaces DINOv2.
set -euo pipefail

folders=()
for folder in "$@"; do # relative to the caller's directory
    [ -d "$folder" ] || { echo "$0: no such folder: $folder" >&2; exit 2; }
    folders+=("$(cd -- "$folder" >/dev/null && pwd)")
done
case ${WORK:-} in "" | /*) ;; *) WORK=$PWD/$WORK ;; esac
cd "$(dirname "$0")/.."

WORK=${WORK:-runs/miniature}
PYTHON=${PYTHON:-python}
PROCESSES=${PROCESSES:-2}          # training processes, one core each
SCENES=${SCENES:-600}              # labeled images
HELD_OUT=${HELD_OUT:-40}           # scenes that the models are scored on
TEACHER_STEPS=${TEACHER_STEPS:-300}
STUDENT_STEPS=${STUDENT_STEPS:-150}
EXTRA=${EXTRA:-}                   # further options of train.py, for both
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

began=$SECONDS
say() { printf '\n== %s  (%d:%02d)\n' "$*" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)); }
dafast() { "$PYTHON" -m dafast "$@"; }
train() {
    if [ "$PROCESSES" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" \
            train.py --config configs/nano-student.toml "$@"
    else
        "$PYTHON" train.py --config configs/nano-student.toml "$@"
    fi
}

say "labeled images: $SCENES synthetic scenes, and $HELD_OUT that training never sees"
dafast synth --scenes "$SCENES" --out "$WORK/labeled" --workers "$PROCESSES"
dafast synth --scenes "$HELD_OUT" --seed 2147484148 --out "$WORK/held-out" --workers "$PROCESSES"

say "unlabeled images: photographs, packed into shards"
if [ ${#folders[@]} -eq 0 ]; then
    folders=(examples/photos)
    for folder in /usr/share/backgrounds /usr/share/wallpapers; do
        [ -d "$folder" ] && folders+=("$folder")
    done
fi
number=0
mkdir -p "$WORK/photos"
for folder in "${folders[@]}"; do
    # `data pack` names pictures that it cannot read, leaves them out and exits with 1. A folder
    # without usable pictures ends the script.
    dafast data pack "$folder" --out "$WORK/photos/$number" --size 360 --shard-size 50 |
        tee "$WORK/photos/$number.txt" || [ $? -eq 1 ]
    grep -q '^[1-9][0-9]* samples of' "$WORK/photos/$number.txt" ||
        { echo "$0: no photographs from $folder" >&2; exit 1; }
    number=$((number + 1))
done
mkdir -p "$WORK/unlabeled"
for shard in "$WORK"/photos/*/shard-*.tar; do
    ln -sf "$(realpath "$shard")" "$WORK/unlabeled/$(basename "$(dirname "$shard")")-$(basename "$shard")"
done

say "teacher: $TEACHER_STEPS steps on labeled images only"
train --out "$WORK/teacher" --steps "$TEACHER_STEPS" --data.path "$WORK/labeled" \
    --data.eval-path "$WORK/held-out" --unlabeled.path "" --unlabeled.align "" $EXTRA

say "labels: the teacher on the photographs"
dafast label --model "$WORK/teacher/export" --in "$WORK/unlabeled" --out "$WORK/pseudo-labeled"

say "student: $STUDENT_STEPS steps on labeled and pseudo-labeled images, CutMix, feature alignment"
train --out "$WORK/student" --steps "$STUDENT_STEPS" --data.path "$WORK/labeled" \
    --data.eval-path "$WORK/held-out" --unlabeled.path "$WORK/pseudo-labeled" \
    --unlabeled.teacher "" $EXTRA

say "held-out scenes (to be better than the best constant and the best plane)"
for model in teacher student; do
    printf '%s  ' "$model"
    grep eval/ "$WORK/$model/metrics.jsonl" | tail -n 1
done
say "real photographs with measured depth"
for model in teacher student; do
    echo "$model"
    dafast eval --model "$WORK/$model/export" --data builtin
done
say "done; the student is in $WORK/student/export"
