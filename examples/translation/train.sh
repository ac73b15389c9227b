#!/usr/bin/env bash
# Trains one model of the comparison on Multi30k:
#     bash examples/translation/train.sh NAME [OPTION OF fairseq-train ...]
# NAME: transformer (fairseq's own), or what to put into the self-attentions of encoder and
# decoder: random, random+dot_product, 'dot_product*2,random*2' ... Same shapes, budget and
# seed for all: the published recipe of the stock model (Wu et al. 2021), 8,192 tokens an update, which ends when the
# validation loss has not fallen for ten epochs. A second call goes on where the first one stopped. Environment variables:
#     DATA=examples/translation/work/data/bin   CKPT=examples/translation/work/ckpt
#     RUN=NAME          the folder in CKPT
#     UPDATES=8000 (at most)  SEED=1  THREADS=1  GPU=     (GPU=1: on the GPU)
#     PRECISION=        bf16 or fp32 (default: bf16 where the processor, or the GPU, has it)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
WORK="$ROOT/examples/translation/work"

fail() {
    echo "train.sh: error: $*" >&2
    exit 1
}

NAME="${1:-}"
[ -n "$NAME" ] || fail "one name is needed: transformer, random, random+dot_product ..."
[[ "$NAME" != */* ]] || fail "$NAME: a name has no slash"
: "${DATA:=$WORK/data/bin}" "${CKPT:=$WORK/ckpt}" "${UPDATES:=8000}" "${SEED:=1}" "${THREADS:=1}" "${RUN:=$NAME}"
for variable in UPDATES SEED THREADS; do
    [[ "${!variable}" =~ ^[1-9][0-9]{0,8}$ ]] || fail "$variable=${!variable}: must be a positive number"
done
[ -e "$DATA/dict.de.txt" ] || fail "DATA=$DATA holds no fairseq data: first prepare_multi30k.py"

if [ "$NAME" = transformer ]; then
    MODEL=(--arch transformer)
else
    MODEL=(--arch synth_transformer_tiny
        --encoder-self-attention "$NAME" --decoder-self-attention "$NAME")
fi
DEVICE=(--cpu)
[ -z "${GPU:-}" ] || DEVICE=()

source "$ROOT/examples/environment.sh"
synth_precision
export OMP_NUM_THREADS="$THREADS"
DONE="$CKPT/$RUN/trained-$UPDATES"
if [ -e "$DONE" ]; then # a training that is finished need not be loaded
    echo "train.sh: $NAME is trained already, in $CKPT/$RUN"
    exit
fi
mkdir -p "$CKPT/$RUN"
# Weights in one precision and an optimizer's in another would be neither run.
BEGUN="$(cat "$CKPT/$RUN/precision" 2>/dev/null || echo "$PRECISION")"
[ "$BEGUN" = "$PRECISION" ] || fail "$CKPT/$RUN was begun with PRECISION=$BEGUN: go on with it, or choose another RUN"
echo "$PRECISION" >"$CKPT/$RUN/precision"
echo "train.sh: $RUN in $PRECISION"
"$PYTHON" "$ROOT/examples/about_run.py" "$CKPT/$RUN" \
    "UPDATES=$UPDATES SEED=$SEED PRECISION=$PRECISION bash examples/translation/train.sh $*"
fairseq-train "$DATA" --user-dir "$ROOT/fairseq_synth" "${MODEL[@]}" \
    --encoder-layers 4 --decoder-layers 4 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256 \
    --encoder-attention-heads 4 --decoder-attention-heads 4 \
    --task translation --source-lang en --target-lang de --share-all-embeddings --dropout 0.3 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 0.005 --lr-scheduler inverse_sqrt \
    --warmup-updates 2000 --warmup-init-lr 1e-7 --clip-norm 25 \
    --criterion chunked_label_smoothed_cross_entropy --label-smoothing 0.1 \
    --max-tokens 4096 --update-freq 2 --max-update "$UPDATES" --patience 10 --keep-last-epochs 10 \
    --seed "$SEED" --required-batch-size-multiple 1 --no-progress-bar --log-interval 50 \
    "${HALF[@]}" "${DEVICE[@]}" "${@:2}" --save-dir "$CKPT/$RUN" 2>&1 | tee -a "$CKPT/$RUN/train.log"
touch "$DONE"
