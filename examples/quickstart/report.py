#!/usr/bin/env python3
"""The table at the end: size, speed, perplexity and BLEU of the trained models.

    python report.py --reference test.de --seed 1 NAME=DIR [NAME=DIR ...]

DIR holds what a model left: train.log (fairseq-train --log-format json) and
generate-test.txt (fairseq-generate --results-path DIR).
"""

import argparse
import re
import sys
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

import sacrebleu
import torch
from progress import record


class Row(NamedTuple):
    name: str
    parameters: int
    updates: int
    words_per_second: float
    valid_perplexity: float
    bleu: float
    signature: str


def fail(message: str) -> None:
    sys.exit(f"report.py: {message}")


def read_lines(path: Path) -> List[str]:
    if not path.is_file():
        fail(f"{path} is missing: did an earlier step fail?")
    return path.read_text(encoding="utf-8").splitlines()


def hypotheses(path: Path) -> List[str]:
    """The H- lines of fairseq-generate in the order of the test set."""
    rows = [line[2:].split("\t") for line in read_lines(path) if line.startswith("H-")]
    return [text for _, text in sorted((int(row[0]), row[-1]) for row in rows)]


def speed(lines: Sequence[str]) -> float:
    """Target words (pieces) per second of training steps, without validation and saving."""
    words = seconds = 0.0
    steps = [step for step in (record(line, "train_inner") for line in lines) if step]
    for before, step in zip(steps, steps[1:]):  # the first interval warms up
        count = int(step["num_updates"]) - int(before["num_updates"])
        if count > 0:
            words += float(step["wpb"]) * count
            seconds += float(step["train_wall"])
    return words / seconds if seconds else 0.0


def training(path: Path) -> Tuple[int, int, float, float]:
    """Parameters, updates, words per second, perplexity of the last validation."""
    lines = read_lines(path)
    sizes = [m for m in (re.search(r"num\. shared model params: ([\d,]+)", x) for x in lines) if m]
    valid = [step for step in (record(line, "valid") for line in lines) if step]
    if not sizes or not valid:
        fail(f"{path} tells of no finished training")
    parameters = int(sizes[-1].group(1).replace(",", ""))
    last = valid[-1]
    return parameters, int(last["valid_num_updates"]), speed(lines), float(last["valid_ppl"])


def row(name: str, folder: Path, references: List[str]) -> Row:
    translations = hypotheses(folder / "generate-test.txt")
    if len(translations) != len(references):
        fail(f"{name}: {len(translations)} translations of {len(references)} test sentences")
    metric = sacrebleu.metrics.BLEU()
    score = metric.corpus_score(translations, [references]).score
    return Row(name, *training(folder / "train.log"), score, str(metric.get_signature()))


def show(rows: List[Row]) -> None:
    width = max(len(r.name) for r in rows) + 2
    print(f"{'model':<{width}}parameters  updates  train words/s  valid ppl   BLEU")
    for r in rows:
        words = f"{r.words_per_second:,.0f}" if r.words_per_second else "-"  # too short to tell
        print(
            f"{r.name:<{width}}{r.parameters:>10,}  {r.updates:>7}  {words:>13}"
            f"  {r.valid_perplexity:>9.2f}  {r.bleu:>5.1f}"
        )


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Compare trained models.")
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    args = parser.parse_args(argv)
    references = read_lines(args.reference)
    if not references:
        fail(f"{args.reference} is empty")
    pairs = [model.partition("=") for model in args.models]
    rows = [row(name, Path(folder), references) for name, _, folder in pairs]
    show(rows)
    print(f"BLEU: {rows[0].signature}, {len(references)} test sentences")
    print(f"seed {args.seed}, torch {torch.__version__}, CPU threads: {torch.get_num_threads()}")


if __name__ == "__main__":
    main()
