#!/usr/bin/env bash
# Run the tests, one on each core at a time: bash test.sh [options of pytest]
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
environment test
"$python" -m ruff check .
"$python" -m ruff format --check .
if command -v shellcheck >/dev/null; then
    shellcheck -x ./*.sh scripts/*.sh .ci/run .ci/deepinv
else
    echo "warning: shellcheck is not installed, the shell scripts are not checked" >&2
fi
"$python" -m pytest --numprocesses auto --dist worksteal "$@"
