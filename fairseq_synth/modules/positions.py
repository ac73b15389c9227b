"""Which token position every row and column of a logit matrix stands for.

A synthesized logit is indexed by *token position*: the n-th real token of a sentence, whatever slot of the
padded batch it sits in (fairseq pads sources on the left by default). Where no padding precedes a real token,
slots and positions agree and a table is sliced; otherwise it is gathered sentence by sentence.

Shapes: B batch, T queries, S keys, H heads, N maximum length.
"""

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor


def token_positions(pads: Tensor, before: Union[int, Tensor] = 0) -> Tensor:
    """Position of every slot among the real tokens of its sentence; pads get a neighbour's (they are masked).

    ``pads``: B x S, True at pads; ``before``: how many tokens stood before these slots (a number, or B x 1).
    Returns B x S (int64), values in [0, before + S).
    """
    return (pads.logical_not().long().cumsum(dim=1) - 1 + before).clamp(min=0)


class Padding(NamedTuple):
    """Where pads stand in a batch. order: slot order (B x S) that moves every pad behind the real tokens, None where no
    pad precedes a token; between: some pad has tokens on both sides."""

    order: Optional[Tensor]
    between: bool


def padding_layout(pads: Tensor) -> Padding:
    """pads: B x S, True at pads. Waits for the device once."""
    tokens = pads.logical_not().long().cumsum(dim=1)
    early = pads & (tokens < tokens[:, -1:])
    precedes, between = torch.stack([early.any(), (early & (tokens > 0)).any()]).tolist()
    return Padding(torch.sort(pads.long(), dim=1, stable=True)[1] if precedes else None, between)


def gather_slots(x: Tensor, order: Tensor, batch_dim: int = 0) -> Tensor:
    """Reorder the slots of x (B x S (x C), or S x B x C with batch_dim 1) by ``order`` (B x S)."""
    index = order.t() if batch_dim else order
    if x.dim() == 3:
        index = index.unsqueeze(-1).expand(-1, -1, x.size(2))
    return x.gather(1 - batch_dim, index)


class Positions(NamedTuple):
    """Rows ``[start, start + queries)`` against columns ``[first, first + keys)``, unless an index says otherwise.

    ``first`` is not 0 where decoding dropped what an adaptive span does not reach; ``before``: how many tokens of each
    sentence were dropped (a number, or B x 1, where some of the slots were pads). ``pads``: B x S, True at pads of the
    columns; None where none is known.
    """

    start: int
    queries: int
    keys: int
    query_index: Optional[Tensor] = None  # B x T token positions
    key_index: Optional[Tensor] = None  # B x S token positions
    first: int = 0
    pads: Optional[Tensor] = None
    before: Union[int, Tensor] = 0

    @property
    def end(self) -> int:
        """The column behind the last."""
        return self.first + self.keys

    @property
    def shared(self) -> bool:
        """True where every sentence of the batch has the same rows and columns."""
        return self.query_index is None and self.key_index is None

    @property
    def lengths(self) -> Optional[Tensor]:
        """Tokens of every sentence up to the last column (B); None where all have ``end`` of them."""
        if self.pads is None:
            return None
        before = self.before.view(-1) if isinstance(self.before, Tensor) else self.before
        return self.pads.logical_not().sum(dim=1) + before

    def offsets(self, device: torch.device) -> Tensor:
        """Position of every column minus that of its row, in tokens: T x S, or B x T x S where sentences differ."""
        rows, columns = self.query_index, self.key_index
        if rows is None:
            rows = torch.arange(self.start, self.start + self.queries, device=device).unsqueeze(0)
        if columns is None:
            columns = torch.arange(self.first, self.end, device=device).unsqueeze(0)
        offsets = columns.unsqueeze(-2) - rows.unsqueeze(-1)
        return offsets[0] if self.shared else offsets

    def distances(self, device: torch.device) -> Tensor:
        """How far every column is before or after its row, in tokens: T x S, or B x T x S where sentences differ."""
        return self.offsets(device).abs()

    def rows(self, table: Tensor) -> Tensor:
        """H x N x X -> H x T x X, or B x H x T x X where sentences differ."""
        if self.query_index is None:
            return table[:, self.start : self.start + self.queries]
        return table[:, self.query_index].transpose(0, 1)

    def columns(self, logits: Tensor, skipped: int = 0) -> Tensor:
        """(B x) H x T x N -> (B x) H x T x S; ``skipped`` columns of the N are left out at the left of ``logits``."""
        if self.key_index is None:
            return logits[..., self.first - skipped : self.end - skipped]
        if logits.dim() == 3:
            logits = logits.unsqueeze(0)
        batch = self.key_index.size(0)
        index = self.key_index.view(batch, 1, 1, self.keys).expand(-1, logits.size(1), logits.size(2), -1)
        return logits.expand(batch, -1, -1, -1).gather(3, index)
