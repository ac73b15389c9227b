#!/usr/bin/env bash
# The Synthesizer table on Multi30k, from training to BLEU:
#     bash examples/translation/reproduce.sh [ROW ...]        (default: all rows; --list names them)
# Same data, shapes, budget and seeds for every row: train.sh has the recipe. A second call goes on where the first one
# stopped; the table, of all rows that are finished, is written after every row. Environment variables:
#     DATA=examples/translation/work/data/bin      made by prepare_multi30k.py
#     OUT=examples/translation/work/reproduce      RESULTS=OUT/RESULTS.md, made from RESULTS.jsonl beside it
#     UPDATES=8000 (at most)  MAX_TOKENS=4096 (two of these an update)  SEEDS="1"
#     AVERAGE=10 (scores the average of the last epochs too; empty: not)
#     JOBS=1 (rows at a time)  THREADS=1 (of each)  GPU=     (GPU=1: on the GPU)
#     PRECISION=  (bf16 or fp32; default: bf16 where the processor or the GPU has it)
# On a GPU: GPU=1 JOBS=16 SEEDS="1 2 3"
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
HERE="$ROOT/examples/translation"

fail() {
    echo "reproduce.sh: error: $*" >&2
    exit 1
}

ROWS=(dot_product transformer random fixed_random fixed_random-normal factorized_random dense factorized_dense
    random+dense dense+dot_product random+dot_product encoder-random decoder-random cross-random
    adaptive-span all-attention)

# options ROW: the self-attention for train.sh, and what else the row needs
options() {
    case "$1" in
    fixed_random-normal) echo "fixed_random --synthesizer-init normal" ;;
    encoder-random) echo "dot_product --encoder-self-attention random" ;;
    decoder-random) echo "dot_product --decoder-self-attention random" ;;
    cross-random) echo "dot_product --cross-attention random" ;;
    adaptive-span) echo "dot_product --encoder-adaptive-span 64 --decoder-adaptive-span 64 --span-ramp 8" ;;
    all-attention) echo "dot_product --persistent-memory 256" ;; # 256 x 2 x 128: the parameters of the feed-forward
    *) echo "$1" ;;
    esac
}

# one ROW SEED: trains and evaluates it
one() {
    local run="$RUNS/seed$2/$1" scores="$RUNS/seed$2/$1/scores-average$AVERAGE"
    export SEED="$2" RUN="$1" CKPT="$RUNS/seed$2"
    # shellcheck disable=SC2046
    set -- $(options "$1")
    [ -e "$run/trained-$UPDATES" ] || echo "reproduce.sh: $RUN, seed $SEED: training"
    bash "$HERE/train.sh" "$@" --max-tokens "$MAX_TOKENS" >/dev/null ||
        fail "training $RUN failed, see $run/train.log"
    [ -e "$scores" ] || {
        bash "$HERE/evaluate.sh" "$1" >"$scores.part" || fail "evaluating $RUN failed, see $scores.part"
        mv "$scores.part" "$scores"
    }
    report
    echo "reproduce.sh: $RUN, seed $SEED: BLEU $(grep -o 'BLEU|[^ ]* = [0-9.]*' "$scores" | sed 's/.* //' | paste -sd ' ' -)$(left)"
}

# left: the time that the rest will take, if it takes what the rows of this call took
left() {
    local done=0 row seed
    for row in $WANTED; do
        for seed in $SEEDS; do
            [ ! -e "$RUNS/seed$seed/$row/scores-average$AVERAGE" ] || done=$((done + 1))
        done
    done
    local here=$((done - BEFORE)) all
    all=$(($(wc -w <<<"$WANTED") * $(wc -w <<<"$SEEDS")))
    [ "$here" -eq 0 ] || [ "$done" -eq "$all" ] ||
        echo "; $done of $all, about $((($(date +%s) - BEGUN) * (all - done) / here / 60 + 1)) minutes left"
}

# report [--paired]: all rows that are finished, in the order of ROWS, as lines of JSON and the table made from them
report() {
    local row seed finished=()
    for row in "${ROWS[@]}"; do
        for seed in $SEEDS; do
            [ ! -e "$RUNS/seed$seed/$row/scores-average$AVERAGE" ] || finished+=("$RUNS/seed$seed/$row")
        done
    done
    [ ${#finished[@]} -gt 0 ] || return 0
    local record="${RESULTS%.md}.jsonl"
    PYTHONPATH="$ROOT" "$PYTHON" -m fairseq_synth results "${finished[@]}" "$@" --format jsonl --out "$record.$$.jsonl" \
        2>/dev/null
    mv "$record.$$.jsonl" "$record"
    {
        printf '# Multi30k, English to German: fairseq'"'"'s Transformer and what replaces its parts\n\n'
        printf 'Made by `UPDATES=%s MAX_TOKENS=%s SEEDS="%s" AVERAGE=%s bash examples/translation/reproduce.sh`' \
            "$UPDATES" "$MAX_TOKENS" "$SEEDS" "$AVERAGE"
        printf ' (beam 5).\nA row names the self-attention of encoder and decoder, or what is replaced in '
        printf '`dot_product`; [README.md](README.md) has the\nfindings.\n\n'
        PYTHONPATH="$ROOT" "$PYTHON" -m fairseq_synth results "$record" --hide words/s
        "$PYTHON" - <<'PYTHON'
import os, platform, torch
if os.environ.get("GPU"):
    device = torch.cuda.get_device_name(0)
else:
    threads = os.environ["THREADS"]
    device = f"{torch.backends.cpu.get_cpu_capability()} CPU, {threads} thread{'s' * (threads != '1')} per training"
print(f"- Hardware: {device}; torch {torch.__version__}, Python {platform.python_version()}.")
PYTHON
    } >"$RESULTS.$$"
    mv "$RESULTS.$$" "$RESULTS"
}

: "${DATA:=$HERE/work/data/bin}" "${OUT:=$HERE/work/reproduce}" "${UPDATES:=8000}" "${MAX_TOKENS:=4096}"
: "${SEEDS:=1}" "${AVERAGE=10}" "${JOBS:=1}" "${THREADS:=1}" "${RESULTS:=$OUT/RESULTS.md}"
RUNS="$OUT/updates$UPDATES-tokens$MAX_TOKENS"
export DATA OUT UPDATES MAX_TOKENS SEEDS AVERAGE JOBS THREADS RESULTS GPU="${GPU:-}"
if [ "${1:-}" = --list ]; then
    printf '%s\n' "${ROWS[@]}"
    exit
fi
for name in UPDATES MAX_TOKENS JOBS THREADS; do
    [[ "${!name}" =~ ^[1-9][0-9]{0,8}$ ]] || fail "$name=${!name}: must be a positive number"
done
[[ "$AVERAGE" =~ ^([1-9][0-9]{0,2})?$ ]] || fail "AVERAGE=$AVERAGE: must be a number of epochs, or empty"
[[ "$SEEDS" =~ ^[0-9]+(\ [0-9]+)*$ ]] || fail "SEEDS=$SEEDS: must be numbers separated by spaces"
[ -e "$DATA/dict.de.txt" ] || fail "DATA=$DATA holds no fairseq data: first prepare_multi30k.py"
source "$ROOT/examples/environment.sh"
synth_precision
if [ "${1:-}" = --one ]; then # what JOBS call
    one "$2" "$3"
    exit
fi
[ $# -gt 0 ] || set -- "${ROWS[@]}"
for row in "$@"; do
    [[ " ${ROWS[*]} " == *" $row "* ]] || fail "$row: no such row; the rows are ${ROWS[*]}"
done
mkdir -p "$OUT"
# left() in the rows of this call: what was asked for, what was there before
export WANTED="$*" BEGUN BEFORE
BEGUN="$(date +%s)" BEFORE="$(for row in "$@"; do ls "$RUNS"/seed*/"$row/scores-average$AVERAGE" 2>/dev/null || true; done | wc -l)"
for seed in $SEEDS; do
    printf "%s $seed\n" "$@"
done | xargs -P "$JOBS" -L 1 bash "$HERE/reproduce.sh" --one
report --paired
echo "reproduce.sh: wrote $RESULTS"
