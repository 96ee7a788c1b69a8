#!/usr/bin/env bash
# Finds or makes a Python that can run the project and leaves its path in $PYTHON.
#
#   source scripts/setup_env.sh run     what the program imports
#   source scripts/setup_env.sh dev     and what the tests and checks need
#   bash scripts/setup_env.sh dev       the same, prints the path
#
# The active Python is used as it is where every package can be found (a container, an activated environment).
# Otherwise .venv is made beside this folder, once; a stamp with the hash of the requirements tells whether it is
# complete. Nothing is downloaded after that.

_setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_RUN_PACKAGES="torch nvidia.dali pytorch_lightning numpy nibabel nrrd tifffile PIL pydicom sklearn scipy isal tyro joblib rich jinja2 matplotlib psutil numba google_crc32c"
_DEV_PACKAGES="pytest xdist highdicom ruff pyright nbclient ipykernel nbformat"

_is_supported_python() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

_has_packages() { # PYTHON PACKAGE...; looks without importing, which takes seconds for torch
    "$1" - "${@:2}" >/dev/null 2>&1 <<'PY'
import sys
from importlib.util import find_spec

sys.exit(not all(find_spec(name) for name in sys.argv[1:]))
PY
}

_find_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 && _is_supported_python "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "No Python 3.11, 3.12 or 3.13 was found on PATH. Install one and run this command again." >&2
    return 1
}

_make_venv() {
    local python
    python=$(_find_python) || return 1
    echo "Making .venv with $("$python" --version) ..." >&2
    if ! "$python" -m venv --clear "$_setup_root/.venv"; then
        echo "The environment could not be made. On Debian and Ubuntu: apt-get install python3-venv." >&2
        return 1
    fi
}

_install() { # LABEL PIP_ARGUMENT...
    echo "Installing $1 ..." >&2
    if ! "$_setup_root/.venv/bin/python" -m pip install --quiet "${@:2}" >&2; then
        echo "Installing $1 failed; pip's message is above. Run the same command again to continue." >&2
        return 1
    fi
}

_fill_venv() { # REQUIREMENTS_FILE; torch first and alone, so that the largest package has its own line
    local torch
    if torch=$(grep -o '^torch==[^ ]*' "$_setup_root/requirements.txt"); then
        _install "$torch (the largest package, several minutes)" "$torch" || return 1
    fi
    _install "$(basename "$1")" -r "$1"
}

_hash() { # FILE...
    cat "$@" | "$_setup_root/.venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

_setup_env() { # run|dev
    local venv_python="$_setup_root/.venv/bin/python" active stamp hash
    local -a packages files=("$_setup_root/requirements.txt")
    read -r -a packages <<<"$_RUN_PACKAGES"
    if [ "$1" = dev ]; then
        read -r -a packages <<<"$_RUN_PACKAGES $_DEV_PACKAGES"
        files+=("$_setup_root/requirements-dev.txt")
    fi
    active=$(command -v python || command -v python3 || true)
    if [ -n "$active" ] && _is_supported_python "$active" && _has_packages "$active" "${packages[@]}"; then
        PYTHON=$active
        return 0
    fi
    _is_supported_python "$venv_python" || _make_venv || return 1
    hash=$(_hash "${files[@]}") || return 1
    stamp="$_setup_root/.venv/.complete-$1"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]; then
        _fill_venv "${files[-1]}" || return 1
        echo "$hash" >"$stamp"
        echo "The environment is ready." >&2
    fi
    PYTHON=$venv_python
}

case "${1:-run}" in
run | dev) _setup_env "${1:-run}" ;;
*)
    echo "usage: scripts/setup_env.sh [run|dev]" >&2
    false
    ;;
esac
_setup_status=$?
[ $_setup_status -eq 0 ] && export PYTHON
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    [ $_setup_status -eq 0 ] && echo "$PYTHON"
    exit $_setup_status
fi
return $_setup_status
