"""``fairseq-synth check``: the invariants on an attention, the user's own included."""

import argparse
import importlib
import os
import sys
from typing import Any

import fairseq_synth
from fairseq_synth.errors import UsageError

NAME = "check"
HELP = "run the invariants on an attention, your own scorers included"
ORDER = 20


def register(parser: argparse.ArgumentParser) -> None:
    fairseq_synth.setup()
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    from fairseq_synth.models.config import SynthesizerConfig

    parser.usage = "fairseq-synth check SPEC [options]"  # argparse cannot wrap the one it would make
    parser.description = "Padding, causality, cached decoding, beam reorder, gradients: every invariant on SPEC."
    parser.add_argument("spec", metavar="SPEC", help="a scorer or a mixture, for example random+dot_product")
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="FILE",
        action="append",
        default=[],
        help="Python file that registers scorers of your own (may be given more than once)",
    )
    parser.add_argument(
        "--side",
        choices=("encoder", "decoder", "cross"),
        action="append",
        help="check this place only (default: all three)",
    )
    gen_parser_from_dataclass(parser, SynthesizerConfig(), delete_default=True, with_prefix="--synthesizer")


def run(args: argparse.Namespace) -> int:
    from fairseq_synth import checks
    from fairseq_synth.modules.spec import parse_spec

    for path in args.modules:
        _import_file(path)
    parse_spec(args.spec, 1, "SPEC")
    options = tuple((k, v) for k, v in sorted(vars(args).items()) if k.startswith("synthesizer_"))
    sides = tuple(args.side) if args.side else ("encoder", "decoder", "cross")
    failed, last = 0, None
    for outcome in checks.run(args.spec, sides, options):
        if outcome.name != last:
            print(f"{outcome.name}: {checks.INVARIANTS[outcome.name].says}")
            last = outcome.name
        failed += not outcome.passed
        print(f"  {'ok  ' if outcome.passed else 'FAIL'} {outcome.side:8s} {_finding(outcome)}", flush=True)
    print(f"{args.spec}: " + (f"{failed} FAILED" if failed else "all invariants hold"))
    return 1 if failed else 0


def _finding(outcome: Any) -> str:
    if outcome.error is None:
        return f"not applicable: {outcome.detail}"
    return outcome.detail or f"error {outcome.error:.1e}, tolerance {outcome.tolerance:.0e}"


def _import_file(path: str) -> None:
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isfile(path) or not name.endswith(".py"):
        raise UsageError(f"--import {path}: no such Python file")
    sys.path.insert(0, folder)
    importlib.import_module(name[:-3])
