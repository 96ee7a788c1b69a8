#!/usr/bin/env bash
# From nothing to a report on synthetic data: bash scripts/quickstart.sh [OPTION_OF_MAIN_PY...]
#
# Everything lies below results/quickstart. Started again it reuses what is there: the data, the preprocessed cases and
# the trained model; delete the folder to start over. The training's options are in scripts/presets/quickstart.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=results/quickstart
dataset=$base/data/Dataset500_PancreasPhantom
model=$base/model
predictions=$base/predictions
report=$base/report
run=(--data "$base/data" --results "$model" --task 500 --dim 3 --config scripts/presets/quickstart.toml "$@")

step() { # NUMBER TEXT
    printf '\n[%s/6] %3ds  %s\n' "$1" "$SECONDS" "$2"
}

step 1 "Environment"
source scripts/setup_env.sh run
echo "$PYTHON"

step 2 "Synthetic dataset: volumes with a pancreas, a lesion and one of three subtypes"
if [ -f "$dataset/dataset.json" ]; then
    echo "$dataset is there."
else
    "$PYTHON" download.py --task phantom --size small --results "$base/data"
fi

step 3 "Preprocess: orient, crop, normalise, resample, plan"
"$PYTHON" preprocess.py --data "$base/data" --results "$base/data" --task 500 --dim 3 --patch_size 32 48 64

step 4 "Train segmentation and classification together (about 7 minutes on two CPU cores)"
if [ -f "$model/.trained" ]; then
    echo "$model holds a trained model."
else
    "$PYTHON" main.py --exec_mode train "${run[@]}"
    touch "$model/.trained"
fi

step 5 "Predict the raw scans that were held out"
"$PYTHON" main.py --exec_mode predict "${run[@]}" -i "$dataset" -o "$predictions"

step 6 "Evaluate the predictions against the references"
"$PYTHON" evaluate.py --preds "$predictions" --lbls "$dataset" --splits "$dataset/splits_final.json" \
    --results "$report" --logs "$model/logs.json"

printf '\nDone in %d s. Masks and classes: %s\nReport: %s\n' "$SECONDS" "$predictions" "$PWD/$report/report.html"
