#!/usr/bin/env python3
"""The table of study.sh: python table.py OUT/TASK-updatesN-seedN"""

import re
import sys
from pathlib import Path
from typing import List, Optional

ORDER = ("nothing", "ffn", "attention", "embeddings", "attention+ffn", "embeddings+ffn", "embeddings+attention",
         "embeddings+attention+ffn")  # fmt: skip


def last(pattern: str, text: str) -> Optional[str]:
    found = re.findall(pattern, text)
    return found[-1] if found else None


def row(folder: Path) -> List[str]:
    """frozen, trainable %, epochs, valid ppl, and the score of the test: BLEU or perplexity."""
    log = next(path for path in (folder / "dot_product" / "train.log", folder / "train.log") if path.is_file())
    text, scores = log.read_text(), (folder / "scores").read_text()
    total, trained = (
        int(n.replace(",", ""))
        for n in re.search(r"num\. shared model params: ([\d,]+) \(num\. trained: ([\d,]+)\)", text).groups()  # type: ignore[union-attr]
    )
    epochs = last(r"end of epoch (\d+)", text)
    valid = last(r"valid on 'valid' subset \| .*?\bppl ([\d.]+)", text)
    results = re.findall(r" = ([\d.]+) ", scores) or re.findall(r"Perplexity: ([\d.]+)", scores)
    return [folder.name, f"{100 * trained / total:.1f}", str(epochs), str(valid), results[0]]


def main(argv: List[str]) -> None:
    (run,) = (Path(a) for a in argv)
    folders = [run / name for name in ORDER if (run / name / "scores").is_file()]
    bleu = "translation" in run.name
    heads = ["frozen", "trainable %", "epochs", "valid ppl"]
    heads += ["BLEU"] if bleu else ["test ppl"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for folder in folders:
        print("| " + " | ".join(row(folder)) + " |")
    signature = last(r"nrefs\S+", (folders[0] / "scores").read_text()) if folders and bleu else None
    if signature:
        print(f"\nBLEU: {signature}")


if __name__ == "__main__":
    main(sys.argv[1:])
