"""Text that is read line by line."""

import logging
import sys
from typing import Any, Callable, Iterator, List

from fairseq_synth.errors import UsageError, printable

from .patching import replace

logger = logging.getLogger(__name__)
REPLACEMENT = "\ufffd"


def read_any_bytes() -> bool:
    """fairseq-interactive ends in UnicodeDecodeError in mid-stream at bytes that are not UTF-8 (every version).

    Such a line is translated with replacement signs, and named; the stream goes on.
    """
    found = [vars(sys.modules[name]) for name in ("fairseq_cli.interactive", "__main__") if name in sys.modules]
    modules = [sys.modules[space["__name__"]] for space in found if {"buffered_read", "make_batches"} <= set(space)]
    for module in modules:
        replace(module, "buffered_read", _reading)
    return bool(modules)


def _reading(stock: Callable) -> Callable:
    def buffered_read(input: str, buffer_size: int) -> Iterator[List[str]]:
        buffer: List[str] = []
        for number, line in enumerate(_lines(input), 1):
            if REPLACEMENT in line:
                logger.warning(f"line {number}: bytes that are not UTF-8 are read as {REPLACEMENT}")
            buffer.append(line.strip())
            if len(buffer) >= buffer_size:
                yield buffer
                buffer = []
        if buffer:
            yield buffer

    return buffered_read


def _lines(path: str) -> Iterator[str]:
    if path != "-":
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                yield from file
        except OSError as error:
            raise UsageError(f"--input {printable(path)}: cannot be read: {error.strerror}") from error
        return
    stream: Any = sys.stdin
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="replace")
    yield from stream
