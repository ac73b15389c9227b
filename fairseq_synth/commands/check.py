"""``fairseq-synth check``: the invariants on an attention, the user's own included."""

import argparse
import importlib.util
import os
import sys
import traceback
from typing import Any, Tuple

from fairseq_synth.errors import UsageError, printable


def register(commands: Any) -> None:
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
    _check_options(args.spec, sides, options)
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


def _check_options(spec: str, sides: Tuple[str, ...], options: Tuple[Tuple[str, Any], ...]) -> None:
    """A wrong option is one error, not one of every invariant: the models are built once before. Raises UsageError."""
    from fairseq_synth.checks.case import Case

    for side in sides:
        try:
            Case(spec, side, options).model()
        except UsageError:
            raise
        except Exception as error:  # a scorer that crashes: the invariants say where
            if options and _builds(spec, side):
                given = ", ".join(f"--{name.replace('_', '-')} {printable(value, 40)}" for name, value in options)
                raise UsageError(f"{given}: no model can be built ({type(error).__name__}: {error})") from error


def _builds(spec: str, side: str) -> bool:
    from fairseq_synth.checks.case import Case

    try:
        Case(spec, side).model()
    except Exception:
        return False
    return True


def _import_file(path: str) -> None:
    """As a module of its own name or, where that is taken, another: html.py must not hide Python's html."""
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isfile(path) or not name.endswith(".py"):
        raise UsageError(f"--import {path}: no such Python file")
    module = name[:-3]
    if module in sys.modules or importlib.util.find_spec(module) is not None:
        module = f"fairseq_synth_check_{module}"
    sys.path.append(folder)  # what lies beside it
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[module])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: nothing would be checked, with status 0
        del sys.modules[module]
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UsageError(f"--import {path}: does not import{_line(error, path)}: {printable(what)}") from error


def _line(error: BaseException, path: str) -> str:
    """Where in the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    number = lines[-1] if lines else getattr(error, "lineno", None)
    return f", line {number}" if number else ""
