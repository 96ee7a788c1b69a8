#!/usr/bin/env bash
# Predicts masks and classes with the model that scripts/train.sh left.
#
#   bash scripts/inf.sh RESULTS INPUT OUTPUT [OPTION_OF_MAIN_PY...]
#
# RESULTS is the folder given to scripts/train.sh; INPUT a scan, a folder of scans or a raw dataset (its held-out cases,
# as -i of main.py). OUTPUT gets the masks, predictions.csv, subtype_results.csv and <case>_classification.json. Give
# options of the training that prediction needs again, such as --fold; --tta averages over mirrored views.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/setup_env.sh" run

"$PYTHON" "$root/main.py" --exec_mode predict --results "$1/joint" -i "$2" -o "$3" "${@:4}"
