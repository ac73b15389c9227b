"""The ``fairseq-synth`` command: what fairseq's own commands cannot say or do for this plugin."""

import argparse
import importlib
import logging
import os
import sys
from typing import List, Optional, Tuple

from fairseq_synth.commands.options import own_options
from fairseq_synth.errors import UsageError, one_line

__all__ = ["COMMANDS", "main", "own_options"]

# In the order of the help. Each module has a function `register(commands)`: it adds its parser to `commands` (what
# argparse's add_subparsers returns) and sets `run`, a function from the parsed arguments to the exit status.
COMMANDS: Tuple[str, ...] = (
    "fairseq_synth.commands.options",
    "fairseq_synth.commands.check",
    "fairseq_synth.commands.average",
    "fairseq_synth.commands.materialize",
    "fairseq_synth.freezing.compare",
    "fairseq_synth.inspection.doctor",
    "fairseq_synth.inspection.inspect",
    "fairseq_synth.inspection.plot",
    "fairseq_synth.inspection.results",
)


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point. Returns the exit status; bad input is one line on standard error and status 2."""
    parser = argparse.ArgumentParser(prog="fairseq-synth", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(name).register(commands)
    args = parser.parse_args(argv)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)  # importing all of fairseq turns every library's messages on
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"fairseq-synth {args.command}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # what is left would fail again at exit
        return 1
    finally:
        root.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
