"""Text of users and of files, made fit to be shown: one line, and nothing that a terminal would obey."""

from typing import Any

LONGEST = 200


def printable(value: Any, longest: int = LONGEST) -> str:
    """``value`` as one line of at most ``longest`` characters.

    Control characters, line ends of every kind, direction marks and what is no character at all are written as in
    Python's strings (\\x1b, \\u202e); everything else stays as it is.
    """
    text = str(value)
    if len(text) > longest:
        text = f"{text[: max(longest - 3, 1)]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
