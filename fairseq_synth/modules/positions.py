"""Which token position every row and column of a logit matrix stands for.

A synthesized logit is indexed by *token position*: the n-th real token of a sentence, whatever slot of the
padded batch it sits in (fairseq pads sources on the left by default). Where no padding precedes a real token,
slots and positions agree and a table is sliced; otherwise it is gathered sentence by sentence.

Shapes: B batch, T queries, S keys, H heads, N maximum length.
"""

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor


def token_positions(padding_mask: Tensor, before: Union[int, Tensor] = 0) -> Tensor:
    """Position of every slot among the real tokens of its sentence; pads get a neighbour's (they are masked).

    ``padding_mask``: B x S, True at pads; ``before``: how many tokens stood before these slots (a number, or B x 1).
    Returns B x S (int64), values in [0, before + S).
    """
    return (padding_mask.logical_not().long().cumsum(dim=1) - 1 + before).clamp(min=0)


def right_padding_order(padding_mask: Tensor) -> Optional[Tensor]:
    """Slot order (B x S) that moves every pad behind the real tokens; None where no pad precedes a token."""
    is_pad = padding_mask.long()
    if not bool((is_pad[:, :-1] > is_pad[:, 1:]).any()):
        return None
    return torch.sort(is_pad, dim=1, stable=True)[1]


class Positions(NamedTuple):
    """Rows ``[start, start + queries)`` against columns ``[first, first + keys)``, unless an index says otherwise.

    ``first`` is not 0 where decoding dropped what an adaptive span does not reach.
    """

    start: int
    queries: int
    keys: int
    query_index: Optional[Tensor] = None  # B x T token positions
    key_index: Optional[Tensor] = None  # B x S token positions
    first: int = 0

    @property
    def end(self) -> int:
        """The column behind the last."""
        return self.first + self.keys

    @property
    def shared(self) -> bool:
        """True where every sentence of the batch has the same rows and columns."""
        return self.query_index is None and self.key_index is None

    def distances(self, device: torch.device) -> Tensor:
        """How far every column is before or after its row, in tokens: T x S, or B x T x S where sentences differ."""
        rows, columns = self.query_index, self.key_index
        if rows is None:
            rows = torch.arange(self.start, self.start + self.queries, device=device).unsqueeze(0)
        if columns is None:
            columns = torch.arange(self.first, self.end, device=device).unsqueeze(0)
        distances = (rows.unsqueeze(-1) - columns.unsqueeze(-2)).abs()
        return distances[0] if self.shared else distances

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
