"""How a parameter starts: one rule, from which ordinary initialisation and --frozen-init both draw."""

import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor


class Rule(NamedTuple):
    """kind and value: ``uniform`` on (-value, value), ``normal`` of this standard deviation, or ``constant``.

    zero_row: this row is zero (of embeddings, that of the padding symbol).
    """

    kind: str
    value: float
    zero_row: Optional[int] = None


ZEROS, ONES = Rule("constant", 0.0), Rule("constant", 1.0)


def glorot(fan_in: int, fan_out: int) -> Rule:
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    return Rule("uniform", math.sqrt(6.0 / (fan_in + fan_out)))


def fill(tensor: Tensor, rule: Rule, generator: Optional[torch.Generator] = None) -> None:
    """Draw a tensor in place, from ``generator`` (default: torch's global one)."""
    kind, value, zero_row = rule
    if kind == "normal":
        values = torch.randn(tensor.shape, generator=generator) * value
    elif kind == "uniform":
        values = (2 * torch.rand(tensor.shape, generator=generator) - 1) * value
    elif kind == "constant":
        values = torch.full(tensor.shape, value)
    else:
        raise ValueError(f"rule {kind!r}: not one of uniform, normal, constant")
    with torch.no_grad():
        tensor.copy_(values)
        if zero_row is not None:
            tensor[zero_row] = 0.0
