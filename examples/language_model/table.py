#!/usr/bin/env python
"""The table of compare.sh, from the logs of its trainings: python table.py BLOCK SPAN RUN...  (a run for each seed)."""

import json
import os
import re
import statistics
import sys
from typing import Any, Dict, List, Sequence

RAMP = 32


def read(run: str, name: str, block: int, span: float) -> Dict[str, Any]:
    """The results of one training."""
    with open(os.path.join(run, name, "train.log")) as file:
        log = file.read()
    steps = [json.loads(line) for line in re.findall(r"\| train_inner \| (\{.*\})", log)]
    bits = float(json.loads(re.findall(r"\| test \| (\{.*\})", log)[-1])["test_loss"])
    last, spans = steps[-1], 0.0
    if name == "port":
        bits *= block / (block - 1)  # divided by all tokens of a block, but the last one of each has no target
        spans = float(last["avg_span"]) - RAMP  # logged with the ramp
    else:
        spans = float(last.get("span_mean", span))
    return {
        "parameters": re.search(r"num\. shared model params: ([\d,]+)", log)[1],  # type: ignore[index]
        "bits": bits,
        "span": spans,
        "layers": " ".join(f"{float(v):.0f}" for k, v in last.items() if k.startswith("span_layer_")) or "-",
        "seconds": 1 / statistics.median(float(step["ups"]) for step in steps[1:]),
    }


def line(name: str, runs: Sequence[Dict[str, Any]]) -> str:
    """Means over the seeds; of bits also the smallest and the largest; spans per layer of the first seed."""
    mean = {key: statistics.mean(run[key] for run in runs) for key in ("bits", "span", "seconds")}
    spread = ""
    if len(runs) > 1:
        spread = f"  {min(run['bits'] for run in runs):.3f}-{max(run['bits'] for run in runs):.3f}"
    return (
        f"{name:10}{runs[0]['parameters']:>11}{mean['bits']:>11.3f}{spread}{mean['span']:>11.1f}"
        f"{mean['seconds']:>10.2f}   {runs[0]['layers']}"
    )


def main(argv: List[str]) -> None:
    block, span, folders = int(argv[0]), float(argv[1]), argv[2:]
    spread = "    lowest-highest"[4:] if len(folders) > 1 else ""
    print(f"{'model':10}{'parameters':>11}{'bits/char':>11}{spread}{'mean span':>11}{'s/update':>10}   spans per layer")
    for name in ("port", "adaptive", "memory", "fixed"):
        print(line(name, [read(folder, name, block, span) for folder in folders]))


if __name__ == "__main__":
    main(sys.argv[1:])
