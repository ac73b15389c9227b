"""``fairseq-synth average``: the mean of checkpoints."""

import argparse

import fairseq_synth

NAME = "average"
HELP = "average the weights of checkpoints of one run"
ORDER = 30


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", nargs="+", required=True, metavar="CKPT", help="checkpoints of equal shape")
    parser.add_argument("--output", required=True, metavar="CKPT", help="where to write the average")


def run(args: argparse.Namespace) -> int:
    fairseq_synth.setup()
    from fairseq_synth import checkpoints

    checkpoints.average(args.inputs, args.output)
    print(f"wrote the average of {len(args.inputs)} checkpoints to {args.output}")
    return 0
