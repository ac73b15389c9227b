"""The bare matrix products of a computation: recorded while it runs, then made again with nothing around them.

What is recorded is every product that PyTorch is asked for, forward and backward, with its shapes and with the side
on which an operand is transposed; the operands of the replay are contiguous and its outputs allocated beforehand.
A fused attention kernel counts as the products it contains: 2 forward; backward 5, because it makes the weights a
second time. Under its causal flag it skips half of them, which is counted as half the keys.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_synth.modules.products import product


class Product(NamedTuple):
    """(batch x) rows x inner times inner x columns; batch 0: two matrices."""

    batch: int
    rows: int
    inner: int
    columns: int
    left_transposed: bool = False
    right_transposed: bool = False
    onednn: bool = False  # made by fairseq_synth.modules.products

    @property
    def flops(self) -> int:
        return 2 * max(1, self.batch) * self.rows * self.inner * self.columns


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: List[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "bmm"):
            self.products.append(_product(args[0], args[1]))
        elif name in ("addmm", "baddbmm"):
            self.products.append(_product(args[1], args[2]))
        elif name == "_linear_pointwise":
            left = args[0].reshape(-1, args[0].size(-1))
            self.products.append(_product(left, args[1].t())._replace(onednn=True))
        elif "scaled_dot_product" in name and "attention" in name:
            causal = any(a is True for a in args)
            self.products += _fused(args[1:4] if "backward" in name else args[:3], "backward" in name, causal)
        return func(*args, **(kwargs or {}))


def record(run: Callable[[], Any]) -> List[Product]:
    """The products of one call of ``run``."""
    with Recorder() as recorder:
        run()
    return recorder.products


def _transposed(x: Tensor) -> bool:
    return x.stride(-1) != 1 and x.stride(-2) == 1


def _product(left: Tensor, right: Tensor) -> Product:
    count = left.size(0) if left.dim() == 3 else 0
    return Product(count, left.size(-2), left.size(-1), right.size(-1), _transposed(left), _transposed(right))


def _fused(tensors: Sequence[Tensor], backward: bool, causal: bool) -> List[Product]:
    """queries, keys and values: B x H x T (or S) x D."""
    query, key, value = tensors
    count, steps, size = query.size(0) * query.size(1), query.size(2), query.size(3)
    keys = max(1, key.size(2) // 2) if causal else key.size(2)
    logits = Product(count, steps, size, keys, right_transposed=True)  # q k^T; backward: dO v^T
    outputs = Product(count, steps, keys, value.size(3))  # weights v; backward: dS k
    across = Product(count, keys, steps, size, left_transposed=True)  # backward: weights^T dO and dS^T q
    return [logits, logits, outputs, across, across] if backward else [logits, outputs]


def _by_onednn(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    return product(left, right.t())  # it has no place for the result


def replay(products: Sequence[Product], dtype: torch.dtype, device: str) -> Callable[[], None]:
    """A function that makes the products and nothing else."""
    made: Dict[Tuple[Any, ...], Tensor] = {}

    def operand(role: str, count: int, rows: int, columns: int, transposed: bool) -> Tensor:
        key = (role, count, rows, columns, transposed)
        if key not in made:
            shape = (columns, rows) if transposed else (rows, columns)
            x = torch.randn(*((count,) if count else ()), *shape, device=device).to(dtype)
            made[key] = x.transpose(-2, -1) if transposed else x
        return made[key]

    calls = []
    for p in products:
        left = operand("left", p.batch, p.rows, p.inner, p.left_transposed)
        right = operand("right", p.batch, p.inner, p.columns, p.right_transposed)
        out = operand("out", p.batch, p.rows, p.columns, False)
        calls.append((_by_onednn if p.onednn else torch.bmm if p.batch else torch.mm, left, right, out))

    @torch.no_grad()
    def run() -> None:
        for multiply, left, right, out in calls:
            multiply(left, right, out=out)

    return run
