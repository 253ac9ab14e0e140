# Sets $python to an interpreter that has the packages of requirements.txt, and of the groups that are named
# ("test"). Sourced by the demos and by test.sh, in the top folder. An environment that is active and complete is
# used as it is; otherwise one is made in .venv.
# shellcheck shell=bash

complete() {
    "$1" - "${@:2}" <<'END' >/dev/null 2>&1
import importlib, sys
modules = ["torch", "numpy", "scipy", "cv2", "PIL", "tifffile", "tqdm", "skimage"]
if "test" in sys.argv:
    modules += ["pytest", "xdist", "ruff", "hypothesis", "playwright", "mkdocs", "mkdocstrings"]
for module in modules:
    importlib.import_module(module)
sys.exit(sys.version_info < (3, 10))
END
}

environment() {
    local base=${PYTHON:-python3}
    python=$base
    if complete "$python" "$@"; then return; fi
    python=.venv/bin/python
    if [ -x "$python" ] && complete "$python" "$@"; then return; fi
    if ! "$base" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: $base: Python 3.10 or later with its venv module is needed (Debian: apt install python3-venv)" >&2
        exit 2
    fi
    echo "Making the environment .venv (once; PyTorch is a large download) ..." >&2
    "$base" -m venv .venv
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    local group
    for group in "$@"; do
        "$python" -m pip install --quiet --disable-pip-version-check -r "requirements-$group.txt"
    done
    # On a machine without a screen the libraries of OpenCV's windows may be missing.
    if ! "$python" -c 'import cv2' 2>/dev/null; then
        "$python" -m pip uninstall --quiet --yes opencv-python
        "$python" -m pip install --quiet --disable-pip-version-check opencv-python-headless
    fi
    complete "$python" "$@" || {
        echo "error: .venv: the packages could not be installed; remove .venv and look at the messages above" >&2
        exit 2
    }
}
