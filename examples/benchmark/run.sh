#!/usr/bin/env bash
# Speed and memory beside stock fairseq: a minute or two after the environment is set up.
#     bash examples/benchmark/run.sh [--full] [--only attention,training] [--help]
# All arguments go to benchmark.py. Environment variables: see examples/environment.sh.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ARGUMENTS=("$@")
set --
source "$HERE/../environment.sh"
exec "$PYTHON" "$HERE/benchmark.py" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
