"""Checkpoint files: read, written whole or not at all, averaged, filled with the tensors that a seed stands for.

fairseq's wheels do not ship ``scripts/average_checkpoints.py``. Unlike that script, :func:`average` sums in float64,
keeps a tensor that is the same in all inputs (a fixed map) bit for bit, and takes buffers of any type.
"""

import os
from typing import Any, Callable, Dict, List

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from fairseq_synth.compat.checkpoint_content import check_content, check_file, seal
from fairseq_synth.errors import UsageError, reason
from fairseq_synth.files import whole_file
from fairseq_synth.freezing import record as records
from fairseq_synth.seeded import storage


# ---------------------------------------------------------------------- reading
def read(path: str, option: str) -> Dict[str, Any]:
    """What the file holds, to be written again. The option is named in errors.

    Raises UsageError for a file that is missing, unreadable, or holds no model.
    """
    state = _load(path, option, lambda: torch.load(path, map_location="cpu", weights_only=True))
    try:
        check_file(path)
        check_content(state)
    except UsageError as error:
        raise UsageError(f"{option} {path}: {error}") from error
    return state


def read_weights(path: str, option: str) -> Dict[str, Tensor]:
    """The state dict, with what it left out (--store-frozen seed) drawn again. Raises UsageError as :func:`read`."""
    return storage.materialized(read(path, option)["model"], verify=False)


def read_up_to_date(path: str, option: str) -> Dict[str, Any]:
    """As fairseq reads it, with ``cfg`` for every age of checkpoint. Raises UsageError as :func:`read`.

    Frozen tensors that the file only holds a seed for are drawn and verified; that seed is then ``stored_seed``.
    """

    def load() -> Any:
        try:
            return checkpoint_utils.load_checkpoint_to_cpu(path)
        except (KeyError, TypeError, AttributeError) as error:  # while it was brought up to date
            raise _no_model(path, option) from error

    state = _load(path, option, load)
    if not isinstance(state.get("model"), dict) or state.get("cfg") is None:
        raise _no_model(path, option)
    entry = storage.entry_of(state["model"])
    state["stored_seed"] = None if entry is None else entry.get("seed")
    state["model"] = storage.materialized(state["model"])
    return state


def _load(path: str, option: str, load: Callable[[], Any]) -> Any:
    if not os.path.isfile(path):
        raise UsageError(f"{option} {path}: no such checkpoint file; check the path")
    try:
        return load()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{option} {path}: cannot be read: {reason(error)}") from error


def _no_model(path: str, option: str) -> UsageError:
    return UsageError(f"{option} {path}: holds no model; give a checkpoint that fairseq-train wrote")


# ---------------------------------------------------------------------- writing
def write(state: Dict[str, Any], output: str) -> None:
    """Whole or not at all, with the digests of its tensors. Raises UsageError where it cannot be written."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise UsageError(f"--output {output}: the folder does not exist")
    if os.path.isdir(output):
        raise UsageError(f"--output {output}: is a folder; give the name of a file in it")
    with whole_file(output) as file:
        torch.save(seal(state), file)


def average(inputs: List[str], output: str) -> None:
    """Write the mean of ``inputs`` to ``output``; everything but the weights comes from the last input.

    Raises UsageError for a file that is missing or unreadable, and for checkpoints that differ in shape or in what is
    frozen. Frozen tensors are equal in all inputs, so they stay what they are.
    """
    totals: Dict[str, Tensor] = {}
    first: Dict[str, Tensor] = {}
    same: Dict[str, bool] = {}
    state: Dict[str, Any] = {}
    for path in inputs:
        state = read(path, "--inputs")
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
    write(state, output)


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


def materialize(path: str, output: str) -> int:
    """Write ``path`` to ``output`` with the tensors that it holds a seed for. Returns how many these are.

    They are drawn and their digest is verified. Raises UsageError for a file that leaves nothing out.
    """
    state = read(path, "CKPT")
    if storage.KEY not in state["model"]:
        raise UsageError(f"CKPT {path}: leaves no frozen tensors out; it is a full checkpoint already")
    before = len(state["model"])
    state["model"] = storage.materialized(state["model"])
    extra = state.get("extra_state") or {}
    if "ema" in extra:
        extra["ema"] = storage.materialized(extra["ema"])
    _say_full(state)
    write(state, output)
    return len(state["model"]) - before + 1


def _say_full(state: Dict[str, Any]) -> None:
    """The options in the file: training that goes on from it stores full tensors, too."""
    options = (state.get("cfg") or {}).get("model")
    if isinstance(options, dict):
        options["store_frozen"] = "full"
    elif options is not None:
        options.store_frozen = "full"
