"""One line for the user instead of a traceback: option, value, limit, fix."""

import os
import re
import sys
import traceback
from types import TracebackType
from typing import Optional, Type

from .rules import RULES, causes
from .text import printable

__all__ = ["UsageError", "explain", "install_excepthook", "one_line", "printable"]

# When set, tracebacks are printed as well; the one line still comes last.
TRACEBACK_VARIABLE = "FAIRSEQ_SYNTH_TRACEBACK"
# characters of a line: an option's whole value may be in it
LONGEST = 2000


class UsageError(ValueError):
    """A mistake in the options or the data. Its message is one line: option, value, limit, fix."""


def explain(exc: BaseException) -> Optional[str]:
    """One line that says what is wrong and how to mend it, or None where only a traceback helps.

    Any `UsageError` among the causes of `exc` wins; otherwise known failures of fairseq and PyTorch
    are translated, the outermost first.
    """
    chain = list(causes(exc))
    for cause in chain:
        if isinstance(cause, UsageError):
            return one_line(cause)
    for cause in chain:
        for rule in RULES:
            line = rule(cause)
            if line is not None:
                return printable(line, LONGEST)
    return None


def reason(exc: BaseException) -> str:
    """One line for any exception: what `explain` says, or its type and the first line of its message."""
    return explain(exc) or f"{type(exc).__name__}: {(str(exc).strip().splitlines() or [''])[0]}"


def one_line(error: BaseException) -> str:
    """The message of a UsageError, with nothing in it that a terminal would obey. Of users' text, and of files'."""
    return printable(_from_worker(str(error)) or "unknown usage error", LONGEST)


def install_excepthook() -> None:
    """Print the line of `explain` for uncaught exceptions; without one the previous hook runs."""
    previous = sys.excepthook
    if getattr(previous, "explains_usage_errors", False):
        return

    def hook(kind: Type[BaseException], exc: BaseException, trace: Optional[TracebackType]) -> None:
        line = explain(exc) if isinstance(exc, Exception) else None
        if line is None:
            previous(kind, exc, trace)
            return
        sys.stdout.flush()  # what was printed before the error stays before it
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            traceback.print_exception(kind, exc, trace)
        print(f"fairseq_synth: error: {line}", file=sys.stderr)

    hook.explains_usage_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def option_name(name: str) -> str:
    """What is typed for an option: ``store_frozen`` -> ``--store-frozen``."""
    return "--" + name.replace("_", "-")


def _from_worker(message: str) -> str:
    """A data-loading worker sends its error as the text of a whole traceback, the message last."""
    found = re.search(r"^(?:\w+\.)*UsageError: (.*)\Z", message, re.MULTILINE | re.DOTALL)
    return found.group(1).strip() if found and message.startswith("Caught ") else message.strip()
