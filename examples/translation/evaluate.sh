#!/usr/bin/env bash
# BLEU on test2016 of what train.sh made:
#     bash examples/translation/evaluate.sh NAME
# translates with checkpoint_last.pt and with the average of the last ten epochs (beam 5) and
# scores the translations without BPE: tokenized and lowercased text, as the data is, hence
# --tokenize none. Environment variables: DATA, CKPT, RUN, THREADS and GPU as in train.sh; AVERAGE= (empty) leaves
# the average out, AVERAGE=5 takes five epochs.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
WORK="$ROOT/examples/translation/work"

fail() {
    echo "evaluate.sh: error: $*" >&2
    exit 1
}

[ $# -eq 1 ] && [ -n "$1" ] || fail "one name is needed, as for train.sh"
NAME="$1"
: "${DATA:=$WORK/data/bin}" "${CKPT:=$WORK/ckpt}" "${THREADS:=1}" "${RUN:=$NAME}" "${AVERAGE=10}"
[[ "$AVERAGE" =~ ^([1-9][0-9]{0,2})?$ ]] || fail "AVERAGE=$AVERAGE: must be a number of epochs, or empty for no average"
FOLDER="$CKPT/$RUN"
TEXT="$(dirname "$DATA")"
[ -e "$FOLDER/checkpoint_last.pt" ] || fail "$FOLDER/checkpoint_last.pt is missing: first train.sh $NAME"
[ -e "$TEXT/text/test.de" ] || fail "$TEXT/text/test.de is missing: DATA must be OUT/bin of prepare_multi30k.py"
DEVICE=(--cpu)
[ -z "${GPU:-}" ] || DEVICE=()
source "$ROOT/examples/environment.sh"
export OMP_NUM_THREADS="$THREADS"

# Raw data was cut with sentencepiece, whose pieces join to untokenized text.
UNCUT='@@ ' TOKENIZE=none
if [ -e "$TEXT/pieces.model" ]; then
    UNCUT=sentencepiece TOKENIZE=13a
fi

reference() {
    if [ "$UNCUT" = sentencepiece ]; then cat "$TEXT/reference.de"; else sed 's/@@ //g' "$TEXT/text/test.de"; fi
}

# score LABEL CHECKPOINT
score() {
    local out="$FOLDER/$1"
    mkdir -p "$out"
    fairseq-generate "$DATA" --user-dir "$ROOT/fairseq_synth" --source-lang en --target-lang de \
        --gen-subset test --path "$2" --beam 5 --remove-bpe "$UNCUT" --max-tokens 4096 \
        --required-batch-size-multiple 1 --num-workers 0 "${DEVICE[@]}" >"$out/generate.txt" 2>"$out/generate.log" ||
        { tail -n 15 "$out/generate.log" >&2; fail "fairseq-generate failed, see $out/generate.log"; }
    # Batches are sorted by length: H-<number> brings back the order of the test set.
    grep '^H-' "$out/generate.txt" | cut -c 3- | sort -n | cut -f 3- >"$out/hypotheses.de"
    reference >"$out/reference.de"
    [ "$(wc -l <"$out/hypotheses.de")" -eq "$(wc -l <"$out/reference.de")" ] ||
        fail "$out: not every test sentence was translated"
    echo "$NAME, $1: $(grep -o 'Translated.*' "$out/generate.log" || true)"
    local scores=("$PYTHON" -m sacrebleu "$out/reference.de" -i "$out/hypotheses.de" --tokenize "$TOKENIZE" --force
        -m bleu chrf --width 2)
    "${scores[@]}" --format text
    "${scores[@]}" --format json >"$out/scores.json"
}

score last "$FOLDER/checkpoint_last.pt"
[ -n "$AVERAGE" ] || exit 0
EPOCHS=()
while IFS= read -r number; do
    EPOCHS+=("$FOLDER/checkpoint$number.pt")
done < <(printf '%s\n' "$FOLDER"/*.pt | sed -n 's/.*\/checkpoint\([0-9][0-9]*\)\.pt$/\1/p' | sort -n | tail -n "$AVERAGE")
if [ "${#EPOCHS[@]}" -eq 0 ]; then
    echo "$NAME: less than one epoch was trained, there is nothing to average"
    exit
fi
PYTHONPATH="$ROOT" "$PYTHON" -m fairseq_synth average --inputs "${EPOCHS[@]}" --output "$FOLDER/average.pt"
score "average-of-${#EPOCHS[@]}" "$FOLDER/average.pt"
