#!/usr/bin/env bash
# Character language models of equal size, updates and seed, trained two at a time, and a table of the results:
#     bash examples/language_model/compare.sh [FILE[.gz]]      (50,000 characters or more; default: the
#     documentation inside CPython)
# port: fairseq's examples/adaptive_span; adaptive: ours; memory: ours with persistent vectors instead of the
# feed-forward layers; fixed: ours with all spans at the maximum. A second call reuses what is finished.
# Environment variables:
#   UPDATES=300  SEEDS=1  THREADS=1   of each training; SEEDS="1 2 3" trains all four three times
#   OUT=examples/language_model/work/NAME-OF-THE-TEXT
# The Python environment: see examples/environment.sh.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
HERE="$ROOT/examples/language_model"

fail() {
    echo "compare.sh: error: $*" >&2
    exit 1
}
say() { echo "compare.sh: [$SECONDS s] $*"; }

[ $# -le 1 ] || fail "one text at most, got $#"
TEXT=python-documentation
[ $# -eq 0 ] || TEXT="$(basename "$1" .gz)"
: "${UPDATES:=300}" "${SEEDS:=1}" "${THREADS:=1}" "${OUT:=$HERE/work/$TEXT}"
for name in UPDATES SEEDS THREADS; do
    [ -n "${!name// /}" ] || fail "$name: must not be empty"
    for value in ${!name}; do
        [[ "$value" =~ ^[1-9][0-9]{0,8}$ && ( $name = SEEDS || $value = "${!name}" ) ]] ||
            fail "$name=${!name}: must be a positive number"
    done
done
[ "$UPDATES" -ge 20 ] || fail "UPDATES=$UPDATES: 20 at least, for the time per update"

source "$ROOT/examples/environment.sh"
export OMP_NUM_THREADS="$THREADS"
PORT="$("$PYTHON" -c 'import importlib.util as u; print(*u.find_spec("fairseq").submodule_search_locations)')"
PORT="$PORT/examples/adaptive_span"
[ -d "$PORT" ] || fail "this fairseq comes without its examples: no $PORT"

# Of equal size: N persistent vectors have the parameters of a feed-forward layer of N.
LAYERS=4 DIM=128 HEADS=4 INNER=512 SPAN=512 BLOCK=128 STREAMS=16 SPAN_LOSS=5e-7

# train NAME OPTION...: starts a training in the background, sets TRAINING to its process.
train() {
    local folder="$RUN/$1"
    TRAINING=""
    [ ! -e "$folder/trained" ] || { say "$1 is trained already, in $folder"; return 0; }
    rm -rf "$folder"
    mkdir -p "$folder"
    say "training $1"
    # Validated on the last 5% of the text, for the last time after the last update.
    fairseq-train "$OUT/data/bin" "${@:2}" \
        --tokens-per-sample "$BLOCK" --batch-size "$STREAMS" --batch-size-valid "$STREAMS" --dropout 0 \
        --lr 0.07 --adagrad-clip 0.03 --lr-scheduler fixed --warmup-updates 50 \
        --max-update "$UPDATES" --seed "$SEED" --cpu --num-workers 0 --valid-subset test \
        --no-epoch-checkpoints --save-dir "$folder" --log-format json --log-interval 10 \
        >"$folder/train.log" 2>&1 &
    TRAINING=$!
}

ours() {
    train "$1" --user-dir "$ROOT/fairseq_synth" --task streaming_lm --arch adaptive_span_lm \
        --optimizer adagrad_tensor_clip --layers "$LAYERS" --embed-dim "$DIM" --attention-heads "$HEADS" \
        --ffn-embed-dim "$INNER" --attention-span "$SPAN" --span-loss "$SPAN_LOSS" "${@:2}"
}

port() {
    train port --user-dir "$PORT" --task truncated_bptt_lm --arch adaptive_span --criterion adaptive_span_loss \
        --optimizer adagrad_with_grad_clip --n-layer "$LAYERS" --d-model "$DIM" --n-head "$HEADS" \
        --d-inner "$INNER" --attn-span "$SPAN" --aux-loss-scaler "$SPAN_LOSS"
}

# finish NAME PROCESS
finish() {
    [ -z "$2" ] || wait "$2" || { tail -n 5 "$RUN/$1/train.log" >&2; fail "training $1 failed, see $RUN/$1/train.log"; }
    touch "$RUN/$1/trained"
}

# Two at a time with one thread each: faster than one after the other with two.
both() {
    finish "$1" "$2"
    finish "$3" "$4"
}

SECONDS=0 # after set-up
# Whole blocks: the port drops the others, so it would be tested on less text.
[ -d "$OUT/data" ] ||
    "$PYTHON" "$HERE/prepare_characters.py" ${1:+--from "$1"} --out "$OUT/data" --multiple-of "$((BLOCK * STREAMS))"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for SEED in $SEEDS; do
    RUN="$OUT/run-seed$SEED-updates$UPDATES"
    port
    first="$TRAINING"
    ours adaptive
    both port "$first" adaptive "$TRAINING"
    ours memory --persistent-memory "$INNER"
    first="$TRAINING"
    ours fixed --fixed-span --initial-span "$SPAN"
    both memory "$first" fixed "$TRAINING"
done
say "done"

CHECKPOINT="$RUN/adaptive/checkpoint_last.pt"
if ! "$PYTHON" -c "import matplotlib" 2>/dev/null; then
    say "no picture of the spans: that needs matplotlib (pip install matplotlib)"
elif [ -e "$CHECKPOINT" ]; then
    PYTHONPATH="$ROOT" "$PYTHON" -m fairseq_synth plot "$CHECKPOINT" --out "$RUN/pictures" ||
        say "no picture of the spans, see above"
fi
"$PYTHON" "$HERE/table.py" "$BLOCK" "$SPAN" $(for SEED in $SEEDS; do echo "$OUT/run-seed$SEED-updates$UPDATES"; done)
