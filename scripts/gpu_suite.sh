#!/usr/bin/env bash
# Everything a machine with a GPU can tell in under nine minutes: bash scripts/gpu_suite.sh OUT [--only KIND...]
#
# Runs the tests marked gpu, makes its data on the spot, then times loader, training, prediction and one whole training,
# each with a time limit; what fails is recorded and the rest goes on. OUT receives gpu_suite.json, gpu_suite.txt,
# gpu_suite.log, tests.xml, tests_compiled.xml and trace.json.gz. Needs no network and installs nothing: PYTHON (default
# python3) has the packages, on PYTHONPATH where need be. GPU_SUITE_SMALL=1: tiny shapes and one part of each kind, also
# without a GPU. --only tests data loader ... runs the parts of these kinds. Exit status 0 unless every part failed.
set -euo pipefail
mkdir -p "${1:?usage: gpu_suite.sh OUT}"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${GPU_SUITE_SMALL:-}" ]; then export OMP_NUM_THREADS=1; fi # tiny arrays: threads cost more than they bring
if ! missing=$("${PYTHON:-python3}" -c "import torch, tyro, nibabel, nvidia.dali, pytorch_lightning" 2>&1); then
    echo "${PYTHON:-python3} lacks a package: ${missing##*$'\n'}. Set PYTHON, or PYTHONPATH to where the packages are." >&2
    exit 4
fi
exec "${PYTHON:-python3}" scripts/gpu_suite_run.py --out "$out" ${GPU_SUITE_SMALL:+--small} "$@"
