"""Replacing functions of fairseq, each by each of our replacements at most once."""

import functools
import inspect
from typing import Any, Callable, FrozenSet, Tuple

import torch

_MARK = "_replaced_by_fairseq_synth"


def replace(owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
    """Set `owner.name` to `make(what was there)`, unless the same `make` already did.

    Two fixes may wrap one function: the later one is called first. Class methods and static
    methods stay what they are: `make` gets the plain function (of a class method the first
    argument is the class).

    Raises:
        AttributeError: `owner` has no `name`: a version of fairseq that the fix was not written
        for.
    """
    there = inspect.getattr_static(owner, name)
    kind = type(there) if isinstance(there, (classmethod, staticmethod)) else None
    function = there.__func__ if kind else there
    done: FrozenSet[str] = getattr(function, _MARK, frozenset())
    this = f"{make.__module__}.{make.__qualname__}"
    if this in done:
        return
    replacement = functools.wraps(function)(make(function))
    setattr(replacement, _MARK, done | {this})
    setattr(owner, name, kind(replacement) if kind else replacement)


def stock_version(function: Callable) -> Callable:
    """`function` as fairseq defined it, whether or not it has been replaced."""
    return inspect.unwrap(function)


def torch_version() -> Tuple[int, int]:
    """(major, minor) of the running PyTorch."""
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return int(major), int(minor)
