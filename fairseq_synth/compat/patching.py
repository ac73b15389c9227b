"""Replacing one function of fairseq, at most once for each reason."""

import functools
import inspect
from typing import Any, Callable, Tuple

import torch

_MARK = "_replaced_by_fairseq_synth"


def replace(owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
    """Set `owner.name` to `make(stock)`, unless an earlier import already did: once for every `make`.

    A class method stays one: `make` then gets the plain function, whose first argument is the
    class.

    Raises:
        AttributeError: `owner` has no `name`: a version of fairseq that the fix was not written
        for.
    """
    stock = inspect.getattr_static(owner, name)
    is_class_method = isinstance(stock, classmethod)
    function = stock.__func__ if is_class_method else stock
    maker = f"{make.__module__}.{make.__qualname__}"
    makers = getattr(function, _MARK, ())
    if maker in makers:
        return
    replacement = functools.wraps(function)(make(function))
    setattr(replacement, _MARK, (*makers, maker))
    setattr(owner, name, classmethod(replacement) if is_class_method else replacement)


def stock_version(function: Callable) -> Callable:
    """`function` as fairseq defined it, whether or not it has been replaced."""
    return inspect.unwrap(function)


def torch_version() -> Tuple[int, int]:
    """(major, minor) of the running PyTorch."""
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return int(major), int(minor)
