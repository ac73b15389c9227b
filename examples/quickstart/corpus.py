#!/usr/bin/env python3
"""Writes the quick-start corpus: random German-English sentence pairs of sentences.py.

    python corpus.py --out DIR [--train 12000] [--valid 500] [--test 500] [--seed 1]

writes {train,valid,test}.{en,de} into DIR. The same options give the same files everywhere.
No English sentence and no German one occurs twice, so nothing of the test set is in train.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from random import Random
from typing import Dict, Iterator, Optional, Sequence, Set

from grammar import pick
from sentences import KINDS, Pair

MIN_WORDS, MAX_WORDS = 4, 18
CONTRACTIONS = {"in dem": "im", "in das": "ins", "an das": "ans", "bei dem": "beim", "von dem": "vom"}


def polish(text: str) -> str:
    """Commas that meet other punctuation, im for in dem, a capital letter first."""
    text = re.sub(r",+(?=[,.?])", "", text)
    for long, short in CONTRACTIONS.items():
        text = re.sub(rf"\b{long}\b", short, text, flags=re.IGNORECASE)
    return text[0].upper() + text[1:]


def sentence_pairs(seed: int) -> Iterator[Pair]:
    """Endless, every English and every German sentence at most once."""
    rng = Random(seed)
    seen: Set[str] = set()
    while True:
        pair = pick(rng, KINDS)(rng)
        english, german = (polish(text) for text in pair)
        lengths = len(english.split()), len(german.split())
        if min(lengths) < MIN_WORDS or max(lengths) > MAX_WORDS:
            continue
        if english.lower() in seen or german.lower() in seen:
            continue
        seen.update((english.lower(), german.lower()))
        yield english, german


def write_corpus(out: Path, sizes: Dict[str, int], seed: int) -> None:
    pairs = sentence_pairs(seed)
    out.mkdir(parents=True, exist_ok=True)
    # The small sets first: with another size of train they stay the same.
    for split in ("test", "valid", "train"):
        rows = [next(pairs) for _ in range(sizes[split])]
        for column, language in enumerate(("en", "de")):
            path = out / f"{split}.{language}"
            partial = path.with_suffix(path.suffix + ".partial")
            partial.write_text("".join(row[column] + "\n" for row in rows), encoding="utf-8")
            os.replace(partial, path)


def describe(out: Path) -> str:
    """Sizes, words, and how much of the test set is in train (must be nothing)."""
    lines = {
        (split, language): (out / f"{split}.{language}").read_text(encoding="utf-8").splitlines()
        for split in ("train", "valid", "test")
        for language in ("en", "de")
    }
    sizes = ", ".join(f"{len(lines[s, 'en']):,} {s}" for s in ("train", "valid", "test"))
    words = {c: [w for line in lines["train", c] for w in line.split()] for c in ("en", "de")}
    kinds = {c: len({w.strip(".,?") for w in words[c]}) for c in words}
    mean = len(words["de"]) / max(1, len(lines["train", "de"]))
    shared = sum(len(set(lines["test", c]) & set(lines["train", c])) for c in ("en", "de"))
    return (
        f"{sizes} sentence pairs; {mean:.1f} words per sentence; {kinds['en']} English and "
        f"{kinds['de']} German word forms; test sentences that occur in train: {shared}"
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Write the quick-start corpus.")
    parser.add_argument("--out", type=Path, required=True)
    for split, size in (("train", 12000), ("valid", 500), ("test", 500)):
        parser.add_argument(f"--{split}", type=int, default=size, metavar="PAIRS")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    sizes = {split: getattr(args, split) for split in ("train", "valid", "test")}
    for split, size in sizes.items():
        if not 1 <= size <= 200000:
            sys.exit(f"corpus.py: --{split} {size}: must be between 1 and 200000")
    write_corpus(args.out, sizes, args.seed)
    print(describe(args.out))


if __name__ == "__main__":
    main()
