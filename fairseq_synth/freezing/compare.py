"""``fairseq-synth diff-frozen A B``: proof from two checkpoints that what A froze is the same in B."""

import argparse
from typing import Any, Dict, Mapping, Optional

from torch import Tensor

from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import record as records
from fairseq_synth.freezing.digest import digest, tensor_digest


def register(commands: Any) -> None:
    command = commands.add_parser(
        "diff-frozen",
        help="prove that the frozen parameters of two checkpoints are equal",
        description="Compares, bit for bit, what --freeze froze in A with the same parameters of B. Exit status 1 if "
        "one differs.",
    )
    command.add_argument("first", metavar="A.pt", help="a checkpoint of a training with --freeze")
    command.add_argument("second", metavar="B.pt", help="a later one, an average, a fine-tuned model...")
    command.set_defaults(run=run_diff_frozen)


def run_diff_frozen(args: argparse.Namespace) -> int:
    first, second = load_weights(args.first), load_weights(args.second)
    record = records.held(first)
    if record is None:
        raise UsageError(f"{args.first}: was not trained with --freeze, so there is nothing to compare")
    lie = _lie(first)
    if lie:  # then nothing can be proved by it
        raise UsageError(f"{args.first}: {lie}")
    findings = {name: _difference(first.get(name), second.get(name)) for name in record["names"]}
    for name, difference in findings.items():
        print(f"{difference or 'equal':<8} {name}")
    print(f"--freeze {record['freeze']}")
    for path, weights in ((args.first, first), (args.second, second)):
        print(f"{_digest(weights, findings)}  {path}")
    differing = sum(difference is not None for difference in findings.values())
    lie = _lie(second)
    if lie:
        print(f"{args.second}: {lie}")
    print(f"{differing} of {len(findings)} frozen tensors differ")
    return 1 if differing or lie else 0


def _lie(weights: Mapping[str, Tensor]) -> Optional[str]:
    """Where a file does not hold what its own record says."""
    try:
        record = records.held(weights)
        if record is not None:
            records.verify(record, weights)
    except UsageError as error:
        return str(error)
    return None


def _digest(weights: Mapping[str, Tensor], names: Any) -> str:
    return digest({name: weights[name] for name in names if name in weights})


def _difference(one: Optional[Tensor], other: Optional[Tensor]) -> Optional[str]:
    """None for equal bits."""
    if one is None or other is None:
        return "missing"
    if tensor_digest(one) == tensor_digest(other):
        return None
    return "MOVED" if _kind(one) == _kind(other) else f"{_kind(one)} is {_kind(other)}:"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).replace('torch.', '')}{list(tensor.shape)}"


def load_weights(path: str) -> Dict[str, Tensor]:
    """The state dict of a checkpoint, what it left out (--store-frozen seed) drawn again.

    Raises UsageError for a file that is missing, unreadable, or something else.
    """
    from fairseq_synth.averaging import read_checkpoint
    from fairseq_synth.seeded.storage import materialized

    return materialized(read_checkpoint(path, "checkpoint")["model"], verify=False)
