"""The ``fairseq-synth`` command: what fairseq's own commands cannot say or do for this plugin."""

import argparse
import dataclasses
import importlib
import sys
import textwrap
from typing import Any, List, Optional, Tuple

from fairseq_synth.errors import UsageError


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point. Returns the exit status; bad input is one line on standard error and status 2."""
    parser = argparse.ArgumentParser(prog="fairseq-synth", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_options(commands)
    _add_check(commands)
    _add_average(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except UsageError as error:
        print(f"fairseq-synth {args.command}: error: {error}", file=sys.stderr)
        return 2


# ---------------------------------------------------------------------- options
def _add_options(commands: Any) -> None:
    command = commands.add_parser("options", help="list the architectures, scorers and options of this plugin")
    command.set_defaults(run=run_options)


def run_options(args: argparse.Namespace) -> int:
    """What ``fairseq-train --help`` leaves out."""
    from fairseq_synth.models.config import SynthTransformerFlatConfig
    from fairseq_synth.models.sequential_lm import PRESETS as SEQUENTIAL
    from fairseq_synth.models.sequential_lm import SequentialLMConfig
    from fairseq_synth.models.transformer import PRESETS
    from fairseq_synth.models.transformer_lm import PRESETS as LM_PRESETS
    from fairseq_synth.modules.scorers import SCORERS

    print("Architectures (--arch), with what differs from fairseq's transformer and\ntransformer_lm:")
    for name, changes in {**PRESETS, **LM_PRESETS}.items():
        print(f"  {name}\n      {_describe_sizes(changes)}")
    print("\nScorers, alone or summed in a mixture (random+dot_product):")
    for name, cls in sorted(SCORERS.items()):
        _print_item(name, _first_line(sys.modules[cls.__module__]))
    print("\nOptions beyond those of fairseq's models (a language model has the decoder's):")
    for flag, field in own_options(SynthTransformerFlatConfig):
        _print_item(f"{flag}  (default: {field.default})", field.metadata["help"])
    print("\nLanguage models over streams of blocks (--task streaming_lm):")
    print(textwrap.fill(", ".join(SEQUENTIAL), 80, initial_indent="  ", subsequent_indent="  "))
    print("\nTheir options:")
    for field in dataclasses.fields(SequentialLMConfig):
        if field.name != "_name":
            flag = "--" + field.name.replace("_", "-")
            _print_item(f"{flag}  (default: {field.default})", field.metadata["help"])
    return 0


def own_options(flat: Any) -> List[Tuple[str, Any]]:
    """(flag, field) of the options that fairseq's own transformer does not have."""
    names = ("self_attention", "cross_attention", "synthesizer_", "layers_to_keep", "span", "persistent", "keep_feed")
    fields = [f for f in dataclasses.fields(flat) if any(n in f.name for n in names) and f.name[:3] != "no_"]
    return [("--" + f.name.replace("_", "-"), f) for f in fields if f.name != "cross_self_attention"]


def _print_item(title: str, text: str) -> None:
    print(f"  {title}\n{textwrap.fill(text, 80, initial_indent=' ' * 6, subsequent_indent=' ' * 6)}")


def _describe_sizes(changes: Any) -> str:
    if not changes:
        return "nothing"
    side = "encoder" if "encoder_layers" in changes else "decoder"
    layers = "+".join(str(changes[k]) for k in ("encoder_layers", "decoder_layers") if k in changes)
    sizes = [changes[f"{side}_{k}"] for k in ("embed_dim", "ffn_embed_dim", "attention_heads")]
    return "{} layers, dimension {}, feed-forward {}, {} heads".format(layers, *sizes)


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().splitlines()[0].split(": ", 1)[-1]


# ---------------------------------------------------------------------- check
def _add_check(commands: Any) -> None:
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    from fairseq_synth.models.config import SynthesizerConfig

    command = commands.add_parser(
        "check",
        usage="fairseq-synth check SPEC [options]",  # argparse cannot wrap the one it would make
        help="run the invariants on an attention, your own scorers included",
        description="Padding, causality, cached decoding, beam reorder, gradients: every invariant on SPEC.",
    )
    command.add_argument("spec", metavar="SPEC", help="a scorer or a mixture, for example random+dot_product")
    command.add_argument(
        "--import",
        dest="modules",
        metavar="FILE",
        action="append",
        default=[],
        help="Python file that registers scorers of your own (may be given more than once)",
    )
    command.add_argument(
        "--side",
        choices=("encoder", "decoder", "cross"),
        action="append",
        help="check this place only (default: all three)",
    )
    gen_parser_from_dataclass(command, SynthesizerConfig(), delete_default=True, with_prefix="--synthesizer")
    command.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    import fairseq_synth.models.transformer  # noqa: F401  (registers what the checks build)
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
    import os

    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isfile(path) or not name.endswith(".py"):
        raise UsageError(f"--import {path}: no such Python file")
    sys.path.insert(0, folder)
    importlib.import_module(name[:-3])


# ---------------------------------------------------------------------- average
def _add_average(commands: Any) -> None:
    command = commands.add_parser("average", help="average the weights of checkpoints of one run")
    command.add_argument("--inputs", nargs="+", required=True, metavar="CKPT", help="checkpoints of equal shape")
    command.add_argument("--output", required=True, metavar="CKPT", help="where to write the average")
    command.set_defaults(run=run_average)


def run_average(args: argparse.Namespace) -> int:
    from fairseq_synth.averaging import average_checkpoints

    average_checkpoints(args.inputs, args.output)
    print(f"wrote the average of {len(args.inputs)} checkpoints to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
