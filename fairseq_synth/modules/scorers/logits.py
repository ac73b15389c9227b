"""Attention logits as they travel from a scorer to the way that weights the values with them.

Legend: B batch, T queries, S keys, H heads, E inner size of a product.
"""

from typing import NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor


class Logits(NamedTuple):
    """rows @ columns^T + bias, where each half may be None.

    rows: B x H x T x E; columns: B x H x S x E; bias: (B x) H x T x S, without B where the batch shares it.
    """

    rows: Optional[Tensor] = None
    columns: Optional[Tensor] = None
    bias: Optional[Tensor] = None

    def full(self) -> Tensor:
        """The matrix: (B x) H x T x S."""
        if self.rows is None or self.columns is None:
            if self.bias is None:
                raise ValueError("logits need rows and columns, or a bias")
            return self.bias
        product = torch.matmul(self.rows, self.columns.transpose(-2, -1))
        return product if self.bias is None else product + self.bias

    def plus(self, bias: Tensor) -> "Logits":
        """bias: (B x) H x T x S."""
        return self._replace(bias=bias if self.bias is None else self.bias + bias)

    @property
    def queries(self) -> int:
        """T."""
        made: Tensor = self.bias if self.rows is None else self.rows  # type: ignore[assignment]
        return made.size(-2)


class HeadLogits(NamedTuple):
    """Logits of different kinds in different heads: each part has the next ``heads`` of them."""

    parts: Tuple[Tuple[int, Logits], ...]

    def full(self) -> Tensor:
        """(B x) H x T x S; with B where one part has it."""
        matrices = [logits.full() for _, logits in self.parts]
        batch = max(m.size(0) if m.dim() == 4 else 0 for m in matrices)
        if batch:
            matrices = [m.expand(batch, *m.shape[-3:]) for m in matrices]
        return torch.cat(matrices, dim=-3)

    def plus(self, bias: Tensor) -> "HeadLogits":
        """bias: (B x) H x T x S."""
        added = bias.split([heads for heads, _ in self.parts], dim=-3)
        return HeadLogits(tuple((heads, logits.plus(b)) for (heads, logits), b in zip(self.parts, added)))

    @property
    def queries(self) -> int:
        """T."""
        return self.parts[0][1].queries


AnyLogits = Union[Logits, HeadLogits]
