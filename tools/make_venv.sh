#!/bin/sh
# Usage: [PYTHON=...] [PIP_ARGS=...] [VENV_TOOL=REQUIREMENT] make_venv.sh FOLDER
# Makes a virtual environment from requirements.lock, with this package installed in place; or, with VENV_TOOL, one
# that holds that one tool. Says in plain words what is missing, since it is the first thing that a new user runs.
set -eu
venv=$1
cd "$(dirname "$0")/.."

suits() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! suits "$PYTHON"; then
        echo "PYTHON=$PYTHON does not run, or is not Python 3.11, 3.12 or 3.13." >&2
        exit 1
    fi
else
    for name in python3 python3.13 python3.12 python3.11; do
        if suits "$name"; then
            PYTHON=$name
            break
        fi
    done
    if [ -z "${PYTHON:-}" ]; then
        echo "Sublayer needs Python 3.11, 3.12 or 3.13, and none was found." >&2
        if command -v python3 >/dev/null 2>&1; then
            echo "python3 here is $(python3 --version 2>&1)." >&2
        fi
        echo "On Debian 12 or Ubuntu 24.04 and newer: apt-get install python3 python3-venv" >&2
        echo "If it is somewhere else, say where: make demo PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
fi
if ! "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$PYTHON cannot make virtual environments: its venv module is not installed." >&2
    echo "On Debian or Ubuntu: apt-get install python3-venv (or python$version-venv)" >&2
    exit 1
fi

# A half-made environment is never taken for a whole one: start over.
"$PYTHON" -m venv --clear "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -n "${VENV_TOOL:-}" ]; then
    # shellcheck disable=SC2086  # PIP_ARGS is a list of words
    "$venv/bin/python" -m pip install --quiet ${PIP_ARGS:-} "$VENV_TOOL"
    exit 0
fi
echo "Setting up $venv with $("$PYTHON" --version): some minutes the first time, most of them for PyTorch."
quiet=--quiet
if [ -t 1 ]; then
    quiet=--progress-bar=on  # somebody is watching
fi
# The lock is complete, so nothing beside it may come in (--no-deps); and a file whose hash is not in it is refused.
# Which build of PyTorch comes is up to where pip looks. Asked for hashes, pip would pass over a build that lies in a
# folder; so it is fetched first, and installed once its hash is checked.
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
awk '/^[^ ]/ { torch = /^torch==/ } torch' requirements.lock >"$fetched/torch.txt"
version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$fetched/torch.txt")
# shellcheck disable=SC2086
"$venv/bin/python" -m pip download $quiet ${PIP_ARGS:-} --no-deps --dest "$fetched" "torch==$version"
"$venv/bin/python" -m pip install $quiet --no-deps --no-index --find-links "$fetched" --require-hashes \
    -r "$fetched/torch.txt"
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install $quiet ${PIP_ARGS:-} --no-deps --require-hashes -r requirements.lock
# The CUDA build says that it wants NVIDIA's libraries.
if "$venv/bin/python" -c '
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
wanted = [Requirement(line) for line in requires("torch") or []]
sys.exit(not any(r.name.startswith(("nvidia-", "cuda-")) and (not r.marker or r.marker.evaluate()) for r in wanted))
'; then
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install $quiet ${PIP_ARGS:-} --no-deps --require-hashes -r requirements-cuda.lock
fi
# The lock holds the build backend too: nothing unpinned is fetched, and nothing beside the lock is installed.
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
"$venv/bin/python" -m pip check
