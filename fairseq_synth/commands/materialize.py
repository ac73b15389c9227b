"""``fairseq-synth materialize``: a checkpoint that holds its frozen tensors, from one that holds their seed."""

import argparse

import fairseq_synth

NAME = "materialize"
HELP = "write frozen tensors that only a seed stands for into the file"
ORDER = 40


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="written by fairseq-train --store-frozen seed")
    parser.add_argument("--output", required=True, metavar="CKPT", help="where to write the full checkpoint")


def run(args: argparse.Namespace) -> int:
    fairseq_synth.setup()
    from fairseq_synth import checkpoints

    drawn = checkpoints.materialize(args.checkpoint, args.output)
    print(f"wrote {args.output}: {drawn} tensors drawn from their seed and verified")
    return 0
