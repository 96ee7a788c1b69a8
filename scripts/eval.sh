#!/usr/bin/env bash
# The three evaluations of predictions: Dice of each label, Dice of the whole organ, and the classes.
#
#   bash scripts/eval.sh REFERENCE PREDICTIONS OUTPUT [OPTION_OF_EVALUATE_PY...]
#
# REFERENCE is a raw dataset, a folder of masks or subtypeN folders with the true classes; PREDICTIONS the OUTPUT of
# scripts/inf.sh. Options hold for all three: --splits FILE --fold N scores the cases of one fold. OUTPUT gets
# summary.json, metrics.csv, whole_pancreas_summary.json and classification_metrics.json.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/setup_env.sh" run

for evaluation in segmentation whole_organ classification; do
    "$PYTHON" "$root/evaluate.py" "$evaluation" "$1" "$2" -o "$3" "${@:4}"
done
