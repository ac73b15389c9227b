"""``fairseq-synth materialize``: a checkpoint that holds its frozen tensors, from one that holds their seed."""

import argparse
from typing import Any, Dict


def register(commands: Any) -> None:
    command = commands.add_parser("materialize", help="write frozen tensors that only a seed stands for into the file")
    command.add_argument("checkpoint", metavar="CKPT", help="written by fairseq-train --store-frozen seed")
    command.add_argument("--output", required=True, metavar="CKPT", help="where to write the full checkpoint")
    command.set_defaults(run=run_materialize)


def run_materialize(args: argparse.Namespace) -> int:
    """Draws, verifies the digest, writes. Raises UsageError for a file that leaves nothing out."""
    from fairseq_synth.averaging import read_checkpoint, write_checkpoint
    from fairseq_synth.errors import UsageError
    from fairseq_synth.seeded.storage import KEY, materialized

    state = read_checkpoint(args.checkpoint, "CKPT")
    if KEY not in state["model"]:
        raise UsageError(f"CKPT {args.checkpoint}: leaves no frozen tensors out; it is a full checkpoint already")
    before = len(state["model"])
    state["model"] = materialized(state["model"])
    extra = state.get("extra_state") or {}
    if "ema" in extra:
        extra["ema"] = materialized(extra["ema"])
    _say_full(state)
    write_checkpoint(state, args.output)
    print(f"wrote {args.output}: {len(state['model']) - before + 1} tensors drawn from their seed and verified")
    return 0


def _say_full(state: Dict[str, Any]) -> None:
    """The options in the file: training that goes on from it stores full tensors, too."""
    options = (state.get("cfg") or {}).get("model")
    if isinstance(options, dict):
        options["store_frozen"] = "full"
    elif options is not None:
        options.store_frozen = "full"
