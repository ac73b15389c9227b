"""``fairseq-synth diff-frozen A B``: proof from two checkpoints that what A froze is the same in B."""

import argparse
from typing import TYPE_CHECKING, Any, Mapping, Optional

import fairseq_synth
from fairseq_synth.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "diff-frozen"
HELP = "prove that the frozen parameters of two checkpoints are equal"
ORDER = 50


def register(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares, bit for bit, what --freeze froze in A with the same parameters of B. Exit status 1 if one differs."
    )
    parser.add_argument("first", metavar="A.pt", help="a checkpoint of a training with --freeze")
    parser.add_argument("second", metavar="B.pt", help="a later one, an average, a fine-tuned model...")


def run(args: argparse.Namespace) -> int:
    fairseq_synth.setup()
    from fairseq_synth.checkpoints import read_weights
    from fairseq_synth.freezing import record as records

    first, second = read_weights(args.first, "A.pt"), read_weights(args.second, "B.pt")
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


def _lie(weights: Mapping[str, "Tensor"]) -> Optional[str]:
    """Where a file does not hold what its own record says."""
    from fairseq_synth.freezing import record as records

    try:
        record = records.held(weights)
        if record is not None:
            records.verify(record, weights)
    except UsageError as error:
        return str(error)
    return None


def _digest(weights: Mapping[str, "Tensor"], names: Any) -> str:
    from fairseq_synth.freezing.digest import digest

    return digest({name: weights[name] for name in names if name in weights})


def _difference(one: Optional["Tensor"], other: Optional["Tensor"]) -> Optional[str]:
    """None for equal bits."""
    from fairseq_synth.freezing.digest import tensor_digest

    if one is None or other is None:
        return "missing"
    if tensor_digest(one) == tensor_digest(other):
        return None
    return "MOVED" if _kind(one) == _kind(other) else f"{_kind(one)} is {_kind(other)}:"


def _kind(tensor: "Tensor") -> str:
    return f"{str(tensor.dtype).replace('torch.', '')}{list(tensor.shape)}"
