#!/usr/bin/env python3
"""A text as sentencepiece units for fairseq-train: 90% training, 5% validation, 5% test, in this order.

    python prepare_pieces.py --from FILE[.gz] --out work/data [--size 4000]

Writes OUT/text/{train,valid,test} (pieces), OUT/pieces.model (BPE of SIZE pieces, from the training text) and OUT/bin,
the first argument of fairseq-train. The text is UTF-8; without --from it is the documentation inside CPython. OUT
appears when everything is in it, or not at all.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, Optional, Sequence

import sentencepiece

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "language_model"))

from prepare_characters import preprocess, read_text, split  # noqa: E402


def fail(message: str) -> None:
    sys.exit(f"prepare_pieces.py: error: {message}")


def write_pieces(texts: Dict[str, str], out: Path, size: int) -> None:
    """Train on the training text; one line of pieces for every line that is not empty."""
    (out / "text").mkdir(parents=True)
    (out / "raw").write_text(texts["train"], encoding="utf-8")
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=str(out / "raw"), model_prefix=str(out / "pieces"), vocab_size=size, model_type="bpe",
            character_coverage=1.0, num_threads=1, max_sentence_length=100_000, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        fail(f"--size {size}: {str(error).strip().splitlines()[-1]}")
    (out / "raw").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "pieces.model"))
    for name, text in texts.items():
        lines = [line for line in text.splitlines() if line.strip()]
        with (out / "text" / name).open("w", encoding="utf-8") as file:
            file.writelines(" ".join(pieces) + "\n" for pieces in model.encode(lines, out_type=str))


def prepare(source: Optional[Path], out: Path, size: int) -> None:
    """Everything in a temporary folder beside OUT, renamed at the end."""
    if out.exists():
        fail(f"--out {out}: exists already; remove it or name another folder")
    texts = split(read_text(source, as_bytes=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=str(out.parent)))
    try:
        write_pieces(texts, temporary / "result", size)
        preprocess(temporary / "result")
        (temporary / "result").rename(out)
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)
    words = {name: len(text.split()) for name, text in texts.items()}
    print(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in words.items()) + f" words, {size} pieces")


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare a text as sentencepiece units for fairseq-train.")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="text, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--size", type=int, default=4000, help="number of pieces")
    args = parser.parse_args(argv)
    prepare(args.source, args.out, args.size)


if __name__ == "__main__":
    main()
