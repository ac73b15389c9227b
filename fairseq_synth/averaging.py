"""The mean of several checkpoints' weights. fairseq's wheels do not ship ``scripts/average_checkpoints.py``.

Unlike that script it sums in float64, keeps a tensor that is the same in all inputs (a fixed map) bit for bit,
and takes buffers of any type.
"""

import os
from typing import Any, Dict, List

import torch
from torch import Tensor

from fairseq_synth.compat.checkpoint_content import check_content, check_file, seal
from fairseq_synth.errors import UsageError, explain, printable
from fairseq_synth.freezing import record as records
from fairseq_synth.seeded import storage


def average_checkpoints(inputs: List[str], output: str) -> None:
    """Write the mean of ``inputs`` to ``output``; everything but the weights comes from the last input.

    Raises UsageError for a file that is missing or unreadable, and for checkpoints that differ in shape or in what is
    frozen. Frozen tensors are equal in all inputs, so they stay what they are.
    The output appears whole or not at all.
    """
    totals: Dict[str, Tensor] = {}
    first: Dict[str, Tensor] = {}
    same: Dict[str, bool] = {}
    state: Dict[str, Any] = {}
    for path in inputs:
        state = read_checkpoint(path)
        weights = state["model"]
        _check_record(weights, path)
        if not totals:
            first = dict(weights)
            totals = {name: t.double() for name, t in weights.items() if t.is_floating_point()}
            same = dict.fromkeys(weights, True)
            continue
        _check_frozen(first, weights, inputs[0], path)
        _check_shapes(first, weights, inputs[0], path)
        for name, tensor in weights.items():
            same[name] = same[name] and torch.equal(first[name], tensor)
            if name in totals:
                totals[name] += tensor.double()
    for name, tensor in state["model"].items():
        if name in totals and not same[name]:
            state["model"][name] = (totals[name] / len(inputs)).to(tensor.dtype)
    write_checkpoint(state, output)


def read_checkpoint(path: str, option: str = "--inputs") -> Dict[str, Any]:
    """What fairseq-train wrote. Raises UsageError, which names the option, for a file that is missing or unreadable."""
    if not os.path.isfile(path):
        raise UsageError(f"{option} {path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = explain(error) or str(error).strip().splitlines()[0]
        raise UsageError(f"{option} {path}: cannot be read: {reason}") from error
    try:
        check_file(path)
        check_content(state)
    except UsageError as error:
        raise UsageError(f"{option} {path}: {error}") from error
    return state


def _check_record(weights: Dict[str, Tensor], path: str) -> None:
    """What this file says of its own frozen tensors. Raises UsageError where it holds others."""
    try:
        full = storage.materialized(weights, verify=False)
        record = records.held(full)
        if record is not None:
            records.verify(record, full)
    except UsageError as error:
        raise UsageError(f"--inputs {path}: {error}") from error


def _check_shapes(first: Dict[str, Tensor], other: Dict[str, Tensor], name: str, path: str) -> None:
    if (storage.KEY in first) != (storage.KEY in other):
        seeded, full = (name, path) if storage.KEY in first else (path, name)
        raise UsageError(
            f"--inputs {path}: {seeded} stores a seed in place of what is frozen, {full} does not; average what "
            f"fairseq-synth materialize {seeded} writes"
        )
    differing = sorted(set(first) ^ set(other))
    names = [k for k in first if k in other and k != records.KEY]  # the record is compressed text
    differing += [k for k in names if first[k].shape != other[k].shape]
    if differing:
        raise UsageError(f"--inputs {path}: differs in shape from {name} at {differing[0]}; average one run's files")


def _check_frozen(first: Dict[str, Tensor], other: Dict[str, Tensor], name: str, path: str) -> None:
    one, two = (records.held(weights) for weights in (first, other))
    for key, what in (("names", "other parameters"), ("digest", "other values of the same parameters")):
        if (one or {}).get(key) != (two or {}).get(key):
            raise UsageError(f"--inputs {path}: has frozen {what} than {name}; average one run's files")


def write_checkpoint(state: Dict[str, Any], output: str) -> None:
    """Whole or not at all, with the digests of its tensors. Raises UsageError where it cannot be written."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise UsageError(f"--output {output}: the folder does not exist")
    if os.path.isdir(output):
        raise UsageError(f"--output {output}: is a folder; give the name of a file in it")
    part = output + ".part"
    try:
        torch.save(seal(state), part)
        os.replace(part, output)
    except (OSError, RuntimeError) as error:
        if os.path.exists(part):
            os.remove(part)
        raise UsageError(f"--output {output}: cannot be written: {explain(error) or printable(error)}") from error
