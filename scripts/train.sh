#!/usr/bin/env bash
# Two stages on a preprocessed dataset: the segmentation first, then segmentation and class together from its weights.
#
#   bash scripts/train.sh DATA TASK RESULTS [OPTION_OF_MAIN_PY...] [-- OPTION_OF_THE_SECOND_STAGE...]
#
# DATA and TASK as --data and --task of main.py. RESULTS/segmentation and RESULTS/joint hold what main.py leaves of each
# stage. Options before -- hold for both stages, those behind it for the second alone, for example:
#
#   bash scripts/train.sh results/data 500 results/two_stage --recipe nnunet --fold 0 -- --head_learning_rate 0.05
#   bash scripts/train.sh results/data 500 results/frozen --recipe nnunet -- --freeze backbone --learning_rate 1e-3
#
# Started again it leaves a finished stage alone and goes on with one that was interrupted.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/setup_env.sh" run

data=$1 task=$2 results=$3
shift 3
both=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    both+=("$1")
    shift
done
second=("${@:2}")

newest() { # FILE...; the one that was written last, nothing where none exists
    local file found=
    for file in "$@"; do
        if [ -f "$file" ] && { [ -z "$found" ] || [ "$file" -nt "$found" ]; }; then found=$file; fi
    done
    echo "$found"
}

stage() { # FOLDER TASKS CHECKPOINT OPTION...; trains unless it was done, goes on where it was interrupted
    local folder=$1 start=(--ckpt_path "$3")
    if [ -f "$folder/.trained" ]; then
        echo "$folder holds a finished training."
        return
    fi
    if [ -f "$folder/checkpoints/last.ckpt" ]; then
        start=(--resume_training)
    elif [ -z "$3" ]; then
        start=()
    fi
    "$PYTHON" "$root/main.py" --exec_mode train --data "$data" --task "$task" --results "$folder" --learn "$2" \
        "${start[@]}" "${both[@]}" "${@:4}"
    touch "$folder/.trained"
}

echo "[1/2] Segmentation"
stage "$results/segmentation" segmentation ""

echo "[2/2] Segmentation and class"
best=$(newest "$results"/segmentation/checkpoints/epoch=*.ckpt)
stage "$results/joint" joint "${best:-$results/segmentation/checkpoints/last.ckpt}" "${second[@]}"

echo "Done. Predict with: bash scripts/inf.sh $results INPUT OUTPUT"
