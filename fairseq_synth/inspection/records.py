"""Runs as lines of JSON: what a table and its curves are made from, small enough to be kept beside them.

A line is one run: its name, size, options that are not places on a machine, curves, scores, and what the run's
``run.json`` says of it (command, versions, hardware).
"""

import json
import math
import os
from typing import Any, Dict, Iterator, List, Optional, Sequence

from fairseq_synth.errors import UsageError
from fairseq_synth.inspection.evaluations import Evaluation, Score
from fairseq_synth.inspection.grouping import NOT_SETTINGS, Measured
from fairseq_synth.inspection.logs import Numbers, Run, lines, words_per_second

ENDING = ".jsonl"
VERSION = 1
POINTS = 100  # of a curve: more than a picture shows
_CURVES = ("num_updates", "epoch", "loss", "nll_loss", "ppl", "bleu", "accuracy", "span_mean", "span_max", "wall")


def is_record(path: str) -> bool:
    return path.endswith(ENDING)


# ---------------------------------------------------------------------- writing
def as_jsonl(measured: Sequence[Measured]) -> str:
    """A line for every run, in the order given."""
    names = _short([one.run.path for one in measured])
    return "".join(json.dumps(_line(name, one)) + "\n" for name, one in zip(names, measured))


def _short(paths: Sequence[str]) -> List[str]:
    """Below the folder that all share: no path of a machine."""
    whole = [os.path.abspath(path) for path in paths]
    above = os.path.dirname(whole[0]) if len(whole) == 1 else os.path.commonpath(whole)
    return [os.path.relpath(path, above) for path in whole]


def _line(name: str, measured: Measured) -> Dict[str, Any]:
    run = measured.run
    kept = {k: _place(v) for k, v in run.options.items() if k == "seed" or k not in NOT_SETTINGS}
    return {
        "record": VERSION,
        "run": name,
        "parameters": run.parameters,
        "trainable": run.trainable,
        "words_per_second": words_per_second(run),
        "about": run.about,
        "options": kept,
        "evaluations": [_evaluation(e) for e in measured.evaluations],
        "valid": [_point(numbers) for numbers in run.valid],
        "steps": [_point(numbers) for numbers in _thinned(run.steps)],
    }


def _place(value: str) -> str:
    """The last part of an absolute path."""
    return os.path.basename(value.rstrip("/")) if value.startswith("/") else value


def _evaluation(one: Evaluation) -> Dict[str, Any]:
    found = {"label": one.label, "scores": [score._asdict() for score in one.scores], "bits": one.bits,
             "perplexity": one.perplexity}  # fmt: skip
    return {name: value for name, value in found.items() if value is not None and value != []}


def _point(numbers: Numbers) -> Dict[str, Any]:
    """JSON has no nan and no infinity: as text, which float() reads."""
    return {name: value if math.isfinite(value) else str(value)
            for name, value in numbers.items() if name in _CURVES}  # fmt: skip


def _thinned(steps: Sequence[Numbers]) -> List[Numbers]:
    """At most POINTS of them, evenly, with the last one."""
    every = -(-len(steps) // POINTS)
    return [step for i, step in enumerate(steps, 1) if (len(steps) - i) % every == 0] if steps else []


# ---------------------------------------------------------------------- reading
def read_records(path: str) -> Iterator[Measured]:
    """Raises UsageError for a file that is not one of these, by line."""
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such file; fairseq-synth results RUN ... --format jsonl --out {path} makes one")
    found = 0
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield _read(line, f"{path}, line {number}", os.path.dirname(path))
            found += 1
    if not found:
        raise UsageError(f"{path}: holds no run")


def _read(line: str, place: str, folder: str) -> Measured:
    try:
        content = json.loads(line)
        if content["record"] != VERSION:
            raise UsageError(f"{place}: record version {content['record']!r}; this one reads {VERSION}")
        run = Run(
            os.path.join(folder, _text(content["run"])), {_text(k): _text(v) for k, v in content["options"].items()},
            _count(content["parameters"]), _count(content["trainable"]), _points(content["steps"]),
            _points(content["valid"]), dict(content["about"]), _number(content["words_per_second"]),
        )  # fmt: skip
        return Measured(run, [_read_evaluation(e) for e in content["evaluations"]])
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{place}: is no record of a run; make it again with --format jsonl") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> Optional[float]:
    return None if value is None else float(value)


def _count(value: Any) -> Optional[int]:
    return None if value is None else int(value)


def _points(curve: Sequence[Dict[str, Any]]) -> List[Numbers]:
    found = [{_text(name): float(value) for name, value in point.items()} for point in curve]
    for point in found:
        int(point["num_updates"])  # raises where it is missing, or no number
    return found


def _read_evaluation(content: Dict[str, Any]) -> Evaluation:
    scores = tuple(Score(s["metric"], float(s["value"]), _text(s["signature"])) for s in content.get("scores", ()))
    return Evaluation(_text(content["label"]), scores, _number(content.get("bits")), _number(content.get("perplexity")))
