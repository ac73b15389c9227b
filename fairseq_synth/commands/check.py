"""``fairseq-synth check``: the invariants on an attention, the user's own included."""

import argparse
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from typing import Any, Sequence, Tuple

import fairseq_synth
from fairseq_synth.errors import UsageError, printable

NAME = "check"
HELP = "run the invariants on an attention, your own scorers included"
ORDER = 20


def register(parser: argparse.ArgumentParser) -> None:
    parser.usage = "fairseq-synth check SPEC [options]"  # argparse cannot wrap the one it would make
    parser.description = "Padding, causality, cached decoding, beam reorder, gradients: every invariant on SPEC."
    parser.add_argument("spec", metavar="SPEC", help="scorer, mixture or heads, for example random+dot_product")
    parser.add_argument(
        "--import",
        action="append",
        metavar="FILE",
        help="Python file that registers scorers of your own (may be given more than once)",
    )
    parser.add_argument(
        "--side",
        choices=("encoder", "decoder", "cross"),
        action="append",
        help="check this place only (default: all three)",
    )
    parser.add_argument("--ways", action="store_true", help="say how SPEC is computed in each situation, check nothing")
    _add_options(parser)


def prepare(words: Sequence[str]) -> None:
    """Imports before the line is read: the scorers of a file may have options of their own."""
    fairseq_synth.setup()
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--import", dest="files", action="append", default=[])
    for path in files.parse_known_args(list(words))[0].files:
        _import_file(path)


def _add_options(parser: argparse.ArgumentParser) -> None:
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    from fairseq_synth.models.options import SynthesizerConfig

    gen_parser_from_dataclass(parser, SynthesizerConfig(), delete_default=True, with_prefix="--synthesizer")


def run(args: argparse.Namespace) -> int:
    from fairseq_synth.checks.case import HEADS
    from fairseq_synth.modules.scorers.spec import parse_spec

    parse_spec(args.spec, 1, "SPEC", HEADS)
    options = tuple((k, v) for k, v in sorted(vars(args).items()) if k.startswith("synthesizer_"))
    sides = tuple(args.side) if args.side else ("encoder", "decoder", "cross")
    _check_options(args.spec, sides, options)
    return (_tell_ways if args.ways else _check)(args.spec, sides, options)


def _check(spec: str, sides: Tuple[str, ...], options: Any) -> int:
    from fairseq_synth import checks

    failed, last = 0, None
    for outcome in checks.run(spec, sides, options):
        if outcome.name != last:
            print(f"{outcome.name}: {checks.INVARIANTS[outcome.name].says}")
            last = outcome.name
        failed += not outcome.passed
        print(f"  {'ok  ' if outcome.passed else 'FAIL'} {outcome.side:8s} {_finding(outcome)}", flush=True)
    print(f"{spec}: " + (f"{failed} FAILED" if failed else "all invariants hold"))
    return 1 if failed else 0


def _tell_ways(spec: str, sides: Tuple[str, ...], options: Any) -> int:
    from fairseq_synth.checks.case import Case
    from fairseq_synth.checks.ways import SITUATIONS, ways_taken

    print(f"{'':<26}" + "".join(f"{side:<20}" for side in sides))
    for situation in SITUATIONS:
        taken = (ways_taken(Case(spec, side, options), situation) for side in sides)
        print(f"{situation:<26}" + "".join(f"{', '.join(ways) or '-':<20}" for ways in taken).rstrip())
    return 0


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
    if not module.isidentifier() or module in sys.modules or importlib.util.find_spec(module) is not None:
        module = "fairseq_synth_check_" + module.replace(".", "_")  # a dot would make it part of a package
    sys.path.append(folder)  # what lies beside it
    loader = importlib.machinery.SourceFileLoader(module, path)
    spec = importlib.util.spec_from_file_location(module, path, loader=loader)
    sys.modules[module] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    try:
        loader.exec_module(sys.modules[module])
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
