#!/usr/bin/env bash
# Training speed of the models of the comparison, measured in turns so that a busy machine slows all alike:
#     bash examples/translation/speed.sh [NAME ...]      (default: transformer random random+dot_product)
# Prints target words per second of updates 21 to 40, the median of ROUNDS=3. Environment: DATA, THREADS, GPU.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ $# -gt 0 ] || set -- transformer random random+dot_product
: "${ROUNDS:=3}"
SCRATCH="$(mktemp -d)"
trap 'rm -rf "$SCRATCH"' EXIT

for ((round = 1; round <= ROUNDS; round++)); do
    for name in "$@"; do
        CKPT="$SCRATCH/$round" UPDATES=40 bash "$HERE/train.sh" "$name" --no-save --log-interval 20 \
            --disable-validation >"$SCRATCH/log" 2>&1 || { tail -n 5 "$SCRATCH/log" >&2; exit 1; }
        speed="$(grep -o 'num_updates=40.*\|wps=[0-9.]*' "$SCRATCH/log" | grep -o 'wps=[0-9.]*' | tail -n 1 | cut -d = -f 2)"
        echo "round $round: $name: $speed words/s"
        echo "$speed" >>"$SCRATCH/$name.speeds"
    done
done
for name in "$@"; do
    echo "$name: $(sort -n "$SCRATCH/$name.speeds" | sed -n "$(((ROUNDS + 1) / 2))p") words/s (median of $ROUNDS)"
done
