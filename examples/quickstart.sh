#!/usr/bin/env bash
# From nothing to BLEU in one command: writes a small English-German corpus, trains fairseq's
# Transformer and the Random Synthesizer on it, translates the test set, prints a table.
# A second call reuses what is there. Environment variables:
#   UPDATES=1000 SENTENCES=16000   training updates and training sentences
#   SEED=1                        of corpus and models
#   THREADS=1                     CPU threads of each training; the two run side by side
#   OUT=examples/quickstart/work  where everything is written
#   QUICK=1                       30 updates on 600 sentences: does it run at all?
# The Python environment: see examples/environment.sh.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
HERE="$ROOT/examples/quickstart"

fail() {
    echo "quickstart: error: $*" >&2
    exit 1
}
say() { echo "quickstart: [$SECONDS s] $*"; }

settings() {
    local name
    if [ -n "${QUICK:-}" ]; then
        : "${UPDATES:=30}" "${SENTENCES:=600}"
        HELDOUT=40 PIECES=400
    else
        : "${UPDATES:=1000}" "${SENTENCES:=16000}"
        HELDOUT=500 PIECES=1000
    fi
    : "${SEED:=1}" "${THREADS:=1}" "${OUT:=$HERE/work}"
    for name in UPDATES SENTENCES SEED THREADS; do
        [[ "${!name}" =~ ^[1-9][0-9]{0,8}$ ]] || fail "$name=${!name}: must be a positive number"
    done
    DATA="$OUT/data${QUICK:+-quick}-$SENTENCES-seed$SEED"
    RUN="$OUT/run${QUICK:+-quick}-$SENTENCES-seed$SEED-updates$UPDATES"
    export OMP_NUM_THREADS="$THREADS"
}

# Runs a command quietly; its output is shown only if it fails.
quietly() {
    local log="$1"
    shift
    "$@" >"$log" 2>&1 || { tail -n 15 "$log" >&2; fail "$(basename "$1") failed, see $log"; }
}

prepare() {
    if [ -d "$DATA" ]; then
        say "reusing the corpus in $DATA"
        return
    fi
    local part="$DATA.part"
    rm -rf "$part"
    say "writing the corpus"
    "$PYTHON" "$HERE/corpus.py" --out "$part" --train "$SENTENCES" --valid "$HELDOUT" \
        --test "$HELDOUT" --seed "$SEED"
    "$PYTHON" "$HERE/pieces.py" --corpus "$part" --size "$PIECES"
    say "fairseq-preprocess"
    quietly "$part/preprocess.log" fairseq-preprocess --source-lang en --target-lang de \
        --trainpref "$part/train.sp" --validpref "$part/valid.sp" --testpref "$part/test.sp" \
        --joined-dictionary --destdir "$part/bin"
    mv "$part" "$DATA"
}

# train NAME MODEL-OPTIONS...: starts a training in the background, sets TRAINING to its process.
train() {
    local name="$1" folder="$RUN/$1"
    shift
    TRAINING=""
    if [ -e "$folder/trained" ]; then
        say "$name is trained already, in $folder (remove it to train again)"
        return
    fi
    mkdir -p "$folder"
    "$PYTHON" "$HERE/progress.py" --name "$name" --updates "$UPDATES" --log "$folder/train.log" -- \
        fairseq-train "$DATA/bin" --user-dir "$ROOT/fairseq_synth" "$@" \
        --encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 128 --decoder-embed-dim 128 \
        --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256 \
        --encoder-attention-heads 4 --decoder-attention-heads 4 \
        --task translation --source-lang en --target-lang de --share-all-embeddings \
        --dropout 0.05 --optimizer adam --adam-betas '(0.9, 0.98)' \
        --lr 0.003 --lr-scheduler inverse_sqrt --warmup-updates 300 --warmup-init-lr 1e-7 \
        --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
        --max-tokens 1536 --required-batch-size-multiple 1 --max-update "$UPDATES" \
        --seed "$SEED" --cpu --no-epoch-checkpoints --save-dir "$folder" \
        --log-format json --log-interval 20 &
    TRAINING=$!
}

# Side by side with one thread each: faster than one after the other with two, and a busy
# machine slows it down no more than its share.
train_both() {
    local transformer
    say "training, $THREADS CPU thread(s) per model"
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
    train transformer --arch transformer
    transformer="$TRAINING"
    # Without queries and keys; maps of 64 x 64 positions, the longest sentence has about 50.
    train random --arch synth_transformer_tiny --synthesizer-max-length 64 \
        --encoder-self-attention random --decoder-self-attention random
    finish random "$TRAINING"
    finish transformer "$transformer"
}

# finish NAME PROCESS: with the mark, a second call of this script does not even start fairseq-train.
finish() {
    [ -z "$2" ] || wait "$2" || fail "training $1 failed, see $RUN/$1/train.log"
    touch "$RUN/$1/trained"
}

translate() {
    local folder="$RUN/$1"
    [ ! -e "$folder/translated" ] || return 0
    say "translating the test set with $1"
    quietly "$folder/generate.log" fairseq-generate "$DATA/bin" \
        --user-dir "$ROOT/fairseq_synth" --source-lang en --target-lang de \
        --path "$folder/checkpoint_last.pt" --beam 5 --remove-bpe sentencepiece \
        --max-tokens 4096 --required-batch-size-multiple 1 --cpu --results-path "$folder"
    touch "$folder/translated"
}

settings
source "$ROOT/examples/environment.sh"
SECONDS=0 # after set-up
prepare
train_both
translate transformer
translate random
say "done"
"$PYTHON" "$HERE/report.py" --reference "$DATA/test.de" --seed "$SEED" \
    "transformer=$RUN/transformer" "random synthesizer=$RUN/random"
