"""Modules as plain functions, for the steps of a search: for one token per row, what surrounds a matrix product in
PyTorch costs as much as the product.

A function is taken from a module once per search, and holds for as long as the module's parameters stay where they
are. Modules with hooks, of a subclass, or with a ``forward`` of their own are called as they are.
"""

from typing import Any, Callable, Iterable, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_synth.modules.products import SMALLEST, Linear, is_faster, product

Function = Callable[[Tensor], Tensor]
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# elements: oneDNN copies a weight into a layout of its own in every product; from here on, ten products are worth a
# copy that is kept
WORTH_PACKING = 1 << 18


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's ``forward``."""
    return "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in HOOKS)


def all_plain(modules: Iterable[nn.Module]) -> bool:
    return all(is_plain(module) for module in modules)


def linear(module: Any, rows: Optional[int]) -> Function:
    """... x in -> ... x out, for a search of that many rows (and fewer, when sentences are finished)."""
    if rows is None or not _is_linear(module):
        return module
    return _product(module.weight, module.bias, rows, faster=type(module) is Linear)


def linears(modules: Sequence[Any], rows: int) -> Callable[[Tensor], Sequence[Tensor]]:
    """The outputs of several linear layers for one input, by one product."""
    if len(modules) < 2 or not all(_is_linear(m) and m.bias is not None for m in modules):
        functions = [linear(m, rows) for m in modules]
        return lambda x: [function(x) for function in functions]
    weight, bias = (torch.cat([getattr(m, name) for m in modules]) for name in ("weight", "bias"))
    product_, sizes = (
        _product(weight, bias, rows, all(type(m) is Linear for m in modules)),
        [len(m.bias) for m in modules],
    )
    return lambda x: product_(x).split(sizes, dim=-1)


def _is_linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Linear) and is_plain(module)


def _product(weight: Tensor, bias: Optional[Tensor], rows: int, faster: bool) -> Function:
    if not (faster and is_faster(rows * weight.numel(), weight)):
        return lambda x: F.linear(x, weight, bias)
    enough, packed = -(-SMALLEST // weight.numel()), weight
    if weight.numel() >= WORTH_PACKING:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: product(x, packed, bias) if x.size(0) >= enough else F.linear(x, weight, bias)


def layer_norm(module: nn.Module) -> Function:
    if type(module) is not nn.LayerNorm or not is_plain(module):
        return module
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
