"""The mean of several checkpoints' weights. fairseq's wheels do not ship ``scripts/average_checkpoints.py``.

Unlike that script it sums in float64, keeps a tensor that is the same in all inputs (a fixed map) bit for bit,
and takes buffers of any type.
"""

import os
from typing import Any, Dict, List

import torch
from torch import Tensor

from fairseq_synth.errors import UsageError, explain


def average_checkpoints(inputs: List[str], output: str) -> None:
    """Write the mean of ``inputs`` to ``output``; everything but the weights comes from the last input.

    Raises UsageError for a file that is missing or unreadable, and for checkpoints of different shape.
    The output appears whole or not at all.
    """
    totals: Dict[str, Tensor] = {}
    first: Dict[str, Tensor] = {}
    same: Dict[str, bool] = {}
    state: Dict[str, Any] = {}
    for path in inputs:
        state = _load(path)
        weights = state["model"]
        if not totals:
            first = dict(weights)
            totals = {name: t.double() for name, t in weights.items() if t.is_floating_point()}
            same = dict.fromkeys(weights, True)
            continue
        _check_shapes(first, weights, inputs[0], path)
        for name, tensor in weights.items():
            same[name] = same[name] and torch.equal(first[name], tensor)
            if name in totals:
                totals[name] += tensor.double()
    for name, tensor in state["model"].items():
        if name in totals and not same[name]:
            state["model"][name] = (totals[name] / len(inputs)).to(tensor.dtype)
    _save(state, output)


def _load(path: str) -> Dict[str, Any]:
    if not os.path.isfile(path):
        raise UsageError(f"--inputs {path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = explain(error) or str(error).strip().splitlines()[0]
        raise UsageError(f"--inputs {path}: cannot be read: {reason}") from error
    if not isinstance(state, dict) or "model" not in state:
        raise UsageError(f"--inputs {path}: holds no model; give checkpoints that fairseq-train wrote")
    return state


def _check_shapes(first: Dict[str, Tensor], other: Dict[str, Tensor], name: str, path: str) -> None:
    differing = sorted(set(first) ^ set(other))
    differing += [k for k in first if k in other and first[k].shape != other[k].shape]
    if differing:
        raise UsageError(f"--inputs {path}: differs in shape from {name} at {differing[0]}; average one run's files")


def _save(state: Dict[str, Any], output: str) -> None:
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise UsageError(f"--output {output}: the folder does not exist")
    part = output + ".part"
    torch.save(state, part)
    os.replace(part, output)
