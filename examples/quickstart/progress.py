#!/usr/bin/env python3
"""Runs a training and tells of it in a line every few seconds.

    python progress.py --name NAME --updates N --log FILE -- fairseq-train ... --log-format json

keeps all output in FILE; if the training fails, shows the end of it and fails as well. A
program between the shell and fairseq-train, so that both end together, also on Ctrl-C.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, NoReturn, Optional, Sequence

TAIL = 15


def record(line: str, kind: str) -> Optional[Dict[str, Any]]:
    """The JSON of a fairseq log line `time | INFO | kind | {...}`."""
    _, found, text = line.partition(f"| {kind} | {{")
    if not found:
        return None
    try:
        values = json.loads("{" + text)
    except ValueError:  # cut off by a full disk or a kill
        return None
    return values if isinstance(values, dict) else None


def summary(name: str, updates: int, line: str) -> Optional[str]:
    """What there is to say about this log line, if anything."""
    step = record(line, "train_inner")
    if step:
        done = int(step["num_updates"])
        return f"{name}: update {done}/{updates}, ppl {step['ppl']}, {float(step['wps']):.0f} words/s"
    valid = record(line, "valid")
    if valid:
        return f"{name}: epoch {valid['epoch']} ends, valid ppl {valid['valid_ppl']}"
    return None


def follow(lines: Iterable[str], name: str, updates: int, log: Path, every: float) -> List[str]:
    """Prints as it goes; returns the last lines."""
    tail: List[str] = []
    spoke = 0.0
    with log.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(line)
            file.flush()
            tail = tail[1 - TAIL :] + [line]
            text = summary(name, updates, line)
            if text and (time.monotonic() - spoke >= every or "valid ppl" in text):
                print(text, flush=True)
                spoke = time.monotonic()
    return tail


def stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run(command: Sequence[str], name: str, updates: int, log: Path, every: float) -> int:
    signal.signal(signal.SIGTERM, stop)
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        sys.exit(f"progress.py: {command[0]}: {error}")
    assert child.stdout is not None
    try:
        tail = follow(child.stdout, name, updates, log, every)
        status = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        sys.exit(f"progress.py: {name} was interrupted")
    if status:
        sys.stderr.write("".join(tail))
        print(f"progress.py: the training of {name} failed, see {log}", file=sys.stderr)
    return status


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Run a training, show its progress.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between lines")
    parser.add_argument("command", nargs="+", help="after --: the training")
    args = parser.parse_args(argv)
    return run(args.command, args.name, args.updates, args.log, args.every)


if __name__ == "__main__":
    sys.exit(main())
