#!/usr/bin/env bash
# Everything that has to pass: lint, format, types, tests. Arguments go to pytest:
#     bash user_dir_tests/run.sh [-k NAME] [-x] ...
# Installs what is needed on the first call (see examples/environment.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh test

step() {
    echo "== $*"
    "$PYTHON" -m "$@"
}

step ruff check .
step ruff format --check .
step mypy
for script in examples/*.sh examples/*/*.sh user_dir_tests/*.sh .ci/*; do
    bash -n "$script"
done
step pytest "$@"
