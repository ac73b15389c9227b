#!/usr/bin/env bash
# Which parts of a Transformer have to be trained? (Bogoychev 2021.) Trains the same model with parts frozen as they
# were initialised, and prints a table:
#     bash examples/frozen/study.sh translation [ROW ...]
#     bash examples/frozen/study.sh language_model [ROW ...]
# ROW: nothing, or the parts that are frozen, joined by +: embeddings, attention, ffn (default: all eight combinations).
# A second call goes on where the first one stopped. Environment variables:
#   DATA      folder of binarised data (translation: see ../translation/README.md; default: its work/data/bin);
#             for the language model, TEXT=FILE[.gz] is cut into PIECES=4000 pieces at the first call (default: the
#             documentation inside CPython)
#   UPDATES=1200  SEED=1  THREADS=1  GPU=    (GPU=1: on the GPU)   OUT=examples/frozen/work
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
HERE="$ROOT/examples/frozen"

fail() {
    echo "study.sh: error: $*" >&2
    exit 1
}

TASK="${1:-}"
[ "$TASK" = translation ] || [ "$TASK" = language_model ] ||
    fail "${TASK:-nothing}: the first argument is translation or language_model"
ROWS=("${@:2}")
[ ${#ROWS[@]} -gt 0 ] ||
    ROWS=(nothing ffn attention embeddings attention+ffn embeddings+ffn embeddings+attention embeddings+attention+ffn)
for row in "${ROWS[@]}"; do
    [[ "$row" =~ ^(nothing|(embeddings|attention|ffn)(\+(embeddings|attention|ffn))*)$ ]] ||
        fail "$row: a row is nothing, or embeddings, attention and ffn joined by +"
done
: "${UPDATES:=1200}" "${SEED:=1}" "${THREADS:=1}" "${PIECES:=4000}" "${OUT:=$HERE/work}"
for name in UPDATES SEED THREADS PIECES; do
    [[ "${!name}" =~ ^[1-9][0-9]{0,8}$ ]] || fail "$name=${!name}: must be a positive number"
done
RUN="$OUT/$TASK-updates$UPDATES-seed$SEED"
source "$ROOT/examples/environment.sh"
export OMP_NUM_THREADS="$THREADS"

# options ROW: what freezes it
options() { [ "$1" = nothing ] || echo "--freeze ${1//+/,}"; }

translation() {
    : "${DATA:=$ROOT/examples/translation/work/data/bin}"
    export DATA UPDATES SEED THREADS CKPT="$RUN/$1"
    # shellcheck disable=SC2046
    bash "$ROOT/examples/translation/train.sh" dot_product --max-tokens 2048 $(options "$1") >/dev/null ||
        fail "training $1 failed, see $CKPT/dot_product/train.log"
    [ -e "$CKPT/scores" ] || {
        AVERAGE="" bash "$ROOT/examples/translation/evaluate.sh" dot_product >"$CKPT/scores.part"
        mv "$CKPT/scores.part" "$CKPT/scores"
    }
}

language_model() {
    local folder="$RUN/$1" device=(--cpu)
    [ -z "${GPU:-}" ] || device=()
    : "${DATA:=$OUT/$(basename "${TEXT:-python-documentation}" .gz)/bin}"
    [ -e "$DATA/dict.txt" ] ||
        "$PYTHON" "$HERE/prepare_pieces.py" ${TEXT:+--from "$TEXT"} --out "$(dirname "$DATA")" --size "$PIECES"
    mkdir -p "$folder"
    [ -e "$folder/trained" ] || {
        # shellcheck disable=SC2046
        fairseq-train "$DATA" --user-dir "$ROOT/fairseq_synth" --task language_modeling --arch synth_transformer_lm \
            --decoder-self-attention dot_product --decoder-layers 4 --decoder-embed-dim 128 \
            --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 --share-decoder-input-output-embed --dropout 0.1 \
            --tokens-per-sample 128 --max-tokens 1024 --optimizer adam --adam-betas '(0.9, 0.98)' --lr 0.003 \
            --lr-scheduler inverse_sqrt --warmup-updates 300 --warmup-init-lr 1e-7 --clip-norm 1 \
            --max-update "$UPDATES" --seed "$SEED" --num-workers 0 --no-epoch-checkpoints --no-progress-bar \
            --log-interval 50 "${device[@]}" $(options "$1") --save-dir "$folder" >>"$folder/train.log" 2>&1 ||
            { tail -n 5 "$folder/train.log" >&2; fail "training $1 failed, see $folder/train.log"; }
        touch "$folder/trained"
    }
    [ -e "$folder/scores" ] || {
        fairseq-eval-lm "$DATA" --user-dir "$ROOT/fairseq_synth" --path "$folder/checkpoint_last.pt" \
            --gen-subset test --tokens-per-sample 128 --max-tokens 4096 "${device[@]}" \
            --num-workers 0 >"$folder/scores.part" 2>&1 || fail "fairseq-eval-lm failed, see $folder/scores.part"
        mv "$folder/scores.part" "$folder/scores"
    }
}

SECONDS=0
for row in "${ROWS[@]}"; do
    echo "study.sh: [$SECONDS s] $TASK, frozen: $row"
    "$TASK" "$row"
done
"$PYTHON" "$HERE/table.py" "$RUN"
