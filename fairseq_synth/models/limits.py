"""Limits of single numbers among the options, each refused in one line."""

import math
from typing import Any, Iterable, List, Tuple

from fairseq_synth.errors import UsageError, option_name

# (name of the option, its value)
Given = Iterable[Tuple[str, Any]]


def at_least(least: int, given: Given) -> None:
    """Raises UsageError for a number below ``least``, or one that is not finite."""
    for name, value in given:
        if not (math.isfinite(float(value)) and value >= least):
            raise UsageError(f"{option_name(name)} {value}: must be at least {least}, and finite")


def probabilities(given: Given) -> None:
    """Raises UsageError for what is not between 0 and 1."""
    for name, value in given:
        if not 0 <= float(value) <= 1:  # nan is not either
            raise UsageError(f"{option_name(name)} {value}: must be between 0 and 1")


def rising_cutoffs(name: str, value: Any) -> List[int]:
    """Where frequency bands begin, from '20000,60000' or a list. Raises UsageError unless they rise from above 0."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).strip("[()] ")
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) < 10]
    if len(numbers) != len(parts) or numbers != sorted(set(numbers)) or numbers[0] < 1:
        raise UsageError(f"{option_name(name)} {text}: wants rising whole numbers, where bands of the vocabulary begin")
    return numbers


def cutoffs_below(name: str, value: Any, vocabulary: int) -> None:
    """Raises UsageError for a band that begins behind the last symbol."""
    numbers = rising_cutoffs(name, value)
    if numbers[-1] >= vocabulary:
        raise UsageError(
            f"{option_name(name)} {','.join(map(str, numbers))}: every band must begin below the vocabulary size "
            f"{vocabulary}; lower or leave out the last ones"
        )
