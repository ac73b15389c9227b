"""``fairseq-synth average``: the mean of checkpoints."""

import argparse
from typing import Any


def register(commands: Any) -> None:
    command = commands.add_parser("average", help="average the weights of checkpoints of one run")
    command.add_argument("--inputs", nargs="+", required=True, metavar="CKPT", help="checkpoints of equal shape")
    command.add_argument("--output", required=True, metavar="CKPT", help="where to write the average")
    command.set_defaults(run=run_average)


def run_average(args: argparse.Namespace) -> int:
    from fairseq_synth.averaging import average_checkpoints

    average_checkpoints(args.inputs, args.output)
    print(f"wrote the average of {len(args.inputs)} checkpoints to {args.output}")
    return 0
