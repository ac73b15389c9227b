#!/usr/bin/env bash
# Attentions as language models, everything else equal, and their table:
#     bash examples/language_model/study.sh characters FILE[.gz] [ROW ...]
#     bash examples/language_model/study.sh words FOLDER [ROW ...]      (train.txt, valid.txt, test.txt; .gz too)
# characters: the sizes, budget and learning rate of nanoGPT's example for a CPU (4 layers, 4 heads, 128, blocks of 64,
# 12 of them an update, 2,000 updates; 90% of the text for training, 10% for validation). words: 4 layers of 256.
# ROW: transformer_lm (fairseq's own) or one of the others below; default: all. A second call goes on where the first
# one stopped. Environment variables:
#   LRS="0.001 0.002 0.004"  every row is trained with these; the best on the validation text is in the table
#   SEEDS="1"  of the best learning rate    UPDATES=2000 (words: 6000)   JOBS=1 (trainings at a time)   THREADS=1
#   GPU=  (GPU=1: on the GPU)   PRECISION=fp32 (characters), bf16 where the processor has it (words)
#   OUT=examples/language_model/work/study-TASK
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
HERE="$ROOT/examples/language_model"

fail() {
    echo "study.sh: error: $*" >&2
    exit 1
}
say() { echo "study.sh: [$SECONDS s] $*"; }

ROWS=(transformer_lm dot_product random factorized_random dense random+dot_product dense+dot_product adaptive-span
    all-attention)

# model ROW: arch and attention
model() {
    local inner="$((4 * DIM))"
    local synth=(--arch synth_transformer_lm --synthesizer-max-length "$BLOCK" --decoder-self-attention)
    case "$1" in
    transformer_lm) echo "--arch transformer_lm --decoder-normalize-before --activation-fn gelu" ;;
    adaptive-span) echo "${synth[*]} dot_product --decoder-adaptive-span $BLOCK --span-ramp 32" ;;
    all-attention) echo "${synth[*]} dot_product --persistent-memory $inner" ;;
    dot_product) echo "--arch synth_transformer_lm --decoder-self-attention dot_product" ;;
    *) echo "${synth[*]} $1" ;;
    esac
}

# one ROW LR SEED: trains it
one() {
    local folder="$OUT/runs/lr$2-seed$3/$1" device=(--cpu)
    [ -z "${GPU:-}" ] || device=()
    [ ! -e "$folder/trained-$UPDATES" ] || return 0
    "$PYTHON" "$ROOT/examples/about_run.py" "$folder" \
        "LRS=$2 SEEDS=$3 UPDATES=$UPDATES PRECISION=$PRECISION bash examples/language_model/study.sh $TASK TEXT $1"
    # shellcheck disable=SC2046
    fairseq-train "$DATA" --user-dir "$ROOT/fairseq_synth" --task language_modeling $(model "$1") \
        --decoder-layers 4 --decoder-embed-dim "$DIM" --decoder-ffn-embed-dim "$((4 * DIM))" \
        --decoder-attention-heads 4 --decoder-learned-pos --share-decoder-input-output-embed --dropout "$DROPOUT" \
        --sample-break-mode none --tokens-per-sample "$BLOCK" --batch-size "$BATCH" --required-batch-size-multiple 1 \
        --optimizer adam --adam-betas '(0.9, 0.99)' --weight-decay 0.1 --clip-norm 1 \
        --lr-scheduler cosine --lr "$2" --min-lr "$(awk "BEGIN {print $2 / 10}")" --warmup-updates 100 \
        --warmup-init-lr 1e-7 --lr-period-updates "$((UPDATES - 100))" --max-update "$UPDATES" \
        --update-epoch-batch-itr True --seed "$3" --num-workers 0 --no-epoch-checkpoints --no-progress-bar \
        --log-interval 50 "${HALF[@]}" "${device[@]}" --save-dir "$folder" >>"$folder/train.log" 2>&1 ||
        { tail -n 5 "$folder/train.log" >&2; fail "training $1 failed, see $folder/train.log"; }
    touch "$folder/trained-$UPDATES"
    say "$1, lr $2, seed $3: validation loss $(loss "$folder") bits"
}

# loss FOLDER: of the last validation, in bits per token
loss() { grep -o "on 'valid' subset | loss [0-9.]*" "$1/train.log" | tail -n 1 | sed 's/.* //'; }

# best ROW: the learning rate with the lowest validation loss of the first seed
best() {
    local lr
    for lr in $LRS; do
        echo "$(loss "$OUT/runs/lr$lr-seed${SEEDS%% *}/$1") $lr"
    done | sort -g | head -n 1 | cut -d ' ' -f 2
}

evaluate() {
    [ "$TASK" = words ] && [ ! -e "$1/eval.log" ] || return 0
    local device=(--cpu)
    [ -z "${GPU:-}" ] || device=()
    fairseq-eval-lm "$DATA" --user-dir "$ROOT/fairseq_synth" --path "$1/checkpoint_best.pt" --gen-subset test \
        --tokens-per-sample "$BLOCK" --batch-size 32 "${device[@]}" --num-workers 0 >"$1/eval.part" 2>&1 ||
        fail "fairseq-eval-lm failed, see $1/eval.part"
    mv "$1/eval.part" "$1/eval.log"
}

prepare() {
    [ ! -e "$DATA/dict.txt" ] || return 0
    if [ "$TASK" = characters ]; then
        "$PYTHON" "$HERE/prepare_characters.py" --from "$TEXT" --parts 90,10 --out "$(dirname "$DATA")"
        return
    fi
    mkdir -p "$OUT/text"
    for name in train valid test; do
        [ -e "$TEXT/$name.txt" ] && cp "$TEXT/$name.txt" "$OUT/text/" || gzip -dc "$TEXT/$name.txt.gz" >"$OUT/text/$name.txt"
    done
    fairseq-preprocess --only-source --trainpref "$OUT/text/train.txt" --validpref "$OUT/text/valid.txt" \
        --testpref "$OUT/text/test.txt" --destdir "$DATA" >"$OUT/preprocess.log" 2>&1 ||
        fail "fairseq-preprocess failed, see $OUT/preprocess.log"
}

TASK="${1:-}" TEXT="${2:-}"
case "$TASK" in
characters) DIM=128 BLOCK=64 BATCH=12 DROPOUT=0 && : "${UPDATES:=2000}" "${PRECISION:=fp32}" ;;
words) DIM=256 BLOCK=128 BATCH=32 DROPOUT=0.3 && : "${UPDATES:=6000}" ;;
*) fail "${TASK:-nothing}: the first argument is characters or words" ;;
esac
[ -n "$TEXT" ] || fail "the second argument is the text"
[ -e "$TEXT" ] || fail "$TEXT: no such file or folder"
: "${LRS:=0.001 0.002 0.004}" "${SEEDS:=1}" "${JOBS:=1}" "${THREADS:=1}" "${OUT:=$HERE/work/study-$TASK}"
for name in UPDATES JOBS THREADS; do
    [[ "${!name}" =~ ^[1-9][0-9]{0,8}$ ]] || fail "$name=${!name}: must be a positive number"
done
[ "$UPDATES" -gt 100 ] || fail "UPDATES=$UPDATES: more than the 100 of the warm-up"
[[ "$SEEDS" =~ ^[0-9]+(\ [0-9]+)*$ ]] || fail "SEEDS=$SEEDS: must be numbers separated by spaces"
[[ "$LRS" =~ ^[0-9.e-]+(\ [0-9.e-]+)*$ ]] || fail "LRS=$LRS: must be numbers separated by spaces"
DATA="$OUT/data/bin"
export UPDATES LRS SEEDS JOBS THREADS OUT GPU="${GPU:-}" PRECISION="${PRECISION:-}"
source "$ROOT/examples/environment.sh"
synth_precision
export OMP_NUM_THREADS="$THREADS"
SECONDS=0
if [ "${3:-}" = --one ]; then # what JOBS call
    one "$4" "$5" "$6"
    exit
fi
chosen=("${@:3}")
[ ${#chosen[@]} -gt 0 ] || chosen=("${ROWS[@]}")
for row in "${chosen[@]}"; do
    [[ " ${ROWS[*]} " == *" $row "* ]] || fail "$row: no such row; the rows are ${ROWS[*]}"
done
mkdir -p "$OUT"
prepare
# side_by_side: lines of ROW LR SEED
side_by_side() { xargs -P "$JOBS" -L 1 bash "$HERE/study.sh" "$TASK" "$TEXT" --one; }
for row in "${chosen[@]}"; do
    printf "$row %s ${SEEDS%% *}\n" $LRS
done | side_by_side
for row in "${chosen[@]}"; do
    printf "$row $(best "$row") %s\n" $SEEDS
done | side_by_side
finished=()
for row in "${chosen[@]}"; do
    for seed in $SEEDS; do
        finished+=("$OUT/runs/lr$(best "$row")-seed$seed/$row")
        evaluate "${finished[-1]}"
    done
done
PYTHONPATH="$ROOT" "$PYTHON" -m fairseq_synth results "${finished[@]}" --format jsonl --out "$OUT/results.jsonl"
PYTHONPATH="$ROOT" "$PYTHON" -m fairseq_synth results "$OUT/results.jsonl" --out "$OUT/RESULTS.md"
cat "$OUT/RESULTS.md"
