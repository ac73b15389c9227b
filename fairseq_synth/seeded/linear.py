"""A linear layer without a weight matrix: it draws the matrix block by block while it multiplies.

Memory is traded for time: every forward pass draws every block again. The blocks are rows of the matrix, so each
output is one dot product over the whole input, as with the whole matrix. The products of a block are those of the
same rows of a stored matrix; whether they equal, to the last bit, what one multiplication by the whole matrix gives
is up to the BLAS library and the processor: those of MKL and, with torch 2.13, oneDNN do on AMD's processors for blocks
of a multiple of MIN_ROWS rows, MKL's do not on some of Intel's (examples/benchmark/seeded_linear.py compares them).
"""

from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.products import is_faster, product
from fairseq_synth.seeded.recipe import Recipe

# a block's elements: 512 KB in float32, within the cache of one core; its rows: fewer take other paths through BLAS
BLOCK, MIN_ROWS = 1 << 17, 64


def seeded_linear(x: Tensor, recipe: Recipe, bias: Optional[Tensor] = None, faster: bool = False) -> Tensor:
    """x W^T + b for a W that is never held. x: ... x in; returns ... x out, in x's type and on its device.

    The one function that a fused kernel replaces: it needs the recipe's stream key, its scale and the counter of the
    tile's first element (:mod:`fairseq_synth.seeded.generator`), and holds the tile in registers.

    faster: multiply as this package's Linear does with the whole matrix, instead of as nn.Linear.
    """
    out = x.new_empty(*x.shape[:-1], recipe.shape[0])
    multiply: Callable = product if faster and is_faster(x.numel() * recipe.shape[0], x) else F.linear
    for start, stop in blocks(recipe.shape[0], recipe.shape[1]):
        weight = recipe.rows(start, stop, x.device).to(x.dtype)
        # x as it is: F.linear takes other paths for other layouts, which may round otherwise
        out[..., start:stop] = multiply(x, weight, None if bias is None else bias[start:stop])
    return out


def seeded_linear_grad(grad: Tensor, recipe: Recipe) -> Tensor:
    """The gradient at x. grad: ... x out; returns ... x in."""
    shape, grad = grad.shape, grad.reshape(-1, recipe.shape[0])
    out = grad.new_zeros(grad.size(0), recipe.shape[1])
    for start, stop in blocks(recipe.shape[0], recipe.shape[1]):
        out.addmm_(grad[:, start:stop], recipe.rows(start, stop, grad.device).to(grad.dtype))
    return out.view(*shape[:-1], recipe.shape[1])


def blocks(rows: int, columns: int) -> Iterator[Tuple[int, int]]:
    """(first, end) of the blocks of rows; the last one takes a remainder of less than MIN_ROWS."""
    step = max(MIN_ROWS, BLOCK // columns // MIN_ROWS * MIN_ROWS)
    start = 0
    while start < rows:
        stop = rows if rows - start - step < MIN_ROWS else start + step
        yield start, stop
        start = stop


class _SeededProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, recipe: Recipe, bias: Optional[Tensor], faster: bool) -> Tensor:
        ctx.recipe = recipe  # not the blocks, which autograd would keep
        return seeded_linear(x, recipe, bias, faster)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], None, Optional[Tensor], None]:
        at_x = seeded_linear_grad(grad, ctx.recipe) if ctx.needs_input_grad[0] else None
        at_bias = grad.reshape(-1, grad.size(-1)).sum(0) if ctx.needs_input_grad[2] else None
        return at_x, None, at_bias, None


class SeededLinear(nn.Module):
    """Stands for an ``nn.Linear`` whose weight is frozen and comes from a seed.

    Args:
        recipe: of the weight, out x in.
        bias: kept as it is (a vector, not a matrix), or None.
        faster: stands for this package's Linear.
    """

    def __init__(self, recipe: Recipe, bias: Optional[nn.Parameter] = None, faster: bool = False) -> None:
        super().__init__()
        self.recipe, self.faster = recipe, faster
        self.out_features, self.in_features = recipe.shape
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The whole matrix, drawn for the caller alone (fairseq's own attention asks for it)."""
        weight = self.recipe.tensor(None if self.bias is None else self.bias.device)
        return weight if self.bias is None else weight.to(self.bias.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, seed={self.recipe.seed}"

    def forward(self, x: Tensor) -> Tensor:
        return _SeededProduct.apply(x, self.recipe, self.bias, self.faster)

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: List[str], *rest: Any
    ) -> None:
        """Takes the recipe in place of the weight; a weight in full must be what the recipe gives."""
        state_dict = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        given = state_dict.pop(prefix + "weight", None)
        if isinstance(given, Recipe):
            self.recipe = given
        elif given is None:
            missing.append(prefix + "weight")
        elif not torch.equal(given.cpu(), self.recipe._replace(casts=(_type(given),)).tensor()):
            raise UsageError(
                f"--frozen-on-the-fly: {prefix}weight in the checkpoint is not what seed {self.recipe.seed} draws; "
                f"drop it from --model-overrides"
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).replace("torch.", "")
