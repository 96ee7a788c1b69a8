#!/usr/bin/env bash
# The whole test suite, from any folder: bash scripts/test.sh [PYTEST_ARGUMENT...]
#
#   bash scripts/test.sh -m "not story"        only the fast tests
#   bash scripts/test.sh tests/utils           one folder
#
# Tests marked gpu run where a CUDA device is present. PROCESSES=n chooses the number of test processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "[1/2] Environment"
source scripts/setup_env.sh dev
echo "      $PYTHON"

chosen="not gpu"
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then chosen=""; fi
export OMP_NUM_THREADS=1 # the tests' arrays are tiny: threads cost more than they bring

echo "[2/2] Tests${chosen:+ ($chosen: no CUDA device here)}"
"$PYTHON" -m pytest -q -n "${PROCESSES:-2}" -m "$chosen" "$@"
