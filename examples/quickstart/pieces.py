#!/usr/bin/env python3
"""Learns one sentencepiece model for both languages and cuts the corpus with it.

    python pieces.py --corpus DIR --size 1000

reads {train,valid,test}.{en,de} in DIR, writes DIR/pieces.model and DIR/{...}.sp.{en,de}.
"""

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

import sentencepiece

LANGUAGES = ("en", "de")


def learn(corpus: Path, size: int) -> sentencepiece.SentencePieceProcessor:
    files = [corpus / f"train.{language}" for language in LANGUAGES]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        sys.exit(f"pieces.py: no such file: {', '.join(missing)}")
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(path) for path in files],
            model_prefix=str(corpus / "pieces"),
            vocab_size=size,
            model_type="bpe",
            character_coverage=1.0,
            hard_vocab_limit=False,  # a tiny corpus has fewer pieces: then it gets fewer
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        sys.exit(f"pieces.py: --size {size}: {str(error).splitlines()[-1]}")
    return sentencepiece.SentencePieceProcessor(model_file=str(corpus / "pieces.model"))


def cut(model: sentencepiece.SentencePieceProcessor, source: Path, target: Path) -> None:
    lines = source.read_text(encoding="utf-8").splitlines()
    rows = (" ".join(pieces) + "\n" for pieces in model.encode(lines, out_type=str))
    target.write_text("".join(rows), encoding="utf-8")


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Learn and apply sentencepiece.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1000)
    args = parser.parse_args(argv)
    model = learn(args.corpus, args.size)
    for split in ("train", "valid", "test"):
        for language in LANGUAGES:
            cut(model, args.corpus / f"{split}.{language}", args.corpus / f"{split}.sp.{language}")
    print(f"{model.get_piece_size():,} sentencepiece pieces for both languages")


if __name__ == "__main__":
    main()
