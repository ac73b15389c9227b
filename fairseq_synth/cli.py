"""The ``fairseq-synth`` command: what fairseq's own commands cannot say or do for this plugin."""

import argparse
import logging
import os
import sys
from typing import List, Optional

from fairseq_synth import __version__
from fairseq_synth.commands import commands
from fairseq_synth.errors import UsageError, one_line
from fairseq_synth.errors.installation import InstallationError


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point. Returns the exit status.

    Bad input is one line on standard error and status 2; so is, with status 1, an installation that cannot do it.
    """
    argv = sys.argv[1:] if argv is None else argv
    asked = next((word for word in argv if not word.startswith("-")), None)
    try:
        return _run(argv, asked)
    except (UsageError, InstallationError) as error:
        print(f"fairseq-synth {asked}: error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # what is left would fail again at exit
        return 1


def _run(argv: List[str], asked: Optional[str]) -> int:
    parser = _parser(asked, argv)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)  # what fairseq tells is for its own commands
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    finally:
        root.setLevel(level)


def _parser(asked: Optional[str], argv: List[str]) -> argparse.ArgumentParser:
    """Every command with its line of help; the one that is asked for with its arguments."""
    parser = argparse.ArgumentParser(prog="fairseq-synth", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fairseq-synth {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in commands().items():
        command = subparsers.add_parser(name, help=module.HELP)
        if name == asked:
            getattr(module, "prepare", _nothing)(argv)
            module.register(command)
            command.set_defaults(run=module.run)
    return parser


def _nothing(words: List[str]) -> None:
    """What most commands have to prepare."""
