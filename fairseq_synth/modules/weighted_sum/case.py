"""One weighted sum to compute: softmax(logits) @ values, and everything that the answer depends on.

Legend: B batch, T queries, S keys, H heads, D head dim, C = H * D, N persistent vectors.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fairseq_synth.modules.scorers.logits import AnyLogits, HeadLogits, Logits

# outputs T x B x C, and the weights of the context before dropout, (B or 1) x H x T x S, where they are wanted
Answer = Tuple[Tensor, Optional[Tensor]]


class Persistent(NamedTuple):
    """Slots that every query sees beside its context, in the same softmax. logits: B x H x T x N; value: H x N x D."""

    logits: Tensor
    value: Tensor


class Case(NamedTuple):
    """What a way is asked for.

    logits: of the context, spans included. value: B x H x S x D. start: the column of the first query itself; causal:
    query t sees the columns up to start + t. pads: B x S, True at what no query may see, or None. right_padded: no pad
    precedes a token. mask: T x S, added to the logits, or None. memory: persistent vectors, or None. dropout: of the
    weights. need_weights: the weights are wanted, too.
    """

    logits: AnyLogits
    value: Tensor
    start: int = 0
    causal: bool = False
    pads: Optional[Tensor] = None
    right_padded: bool = True
    mask: Optional[Tensor] = None
    memory: Optional[Persistent] = None
    dropout: float = 0.0
    need_weights: bool = False

    @property
    def queries(self) -> int:
        """T."""
        return self.logits.queries

    @property
    def plain(self) -> bool:
        """Many queries, every pad to the right of its sentence, and nothing wanted but the outputs."""
        nothing_else = self.mask is None and self.memory is None and not self.need_weights
        return nothing_else and self.right_padded and self.queries > 1

    def cast(self, dtype: torch.dtype) -> "Case":
        """With the operands of products in this type."""
        return self._replace(logits=_cast_logits(self.logits, dtype), value=self.value.to(dtype))

    def drop(self, weights: Tensor) -> Tensor:
        """Dropout on the weights."""
        return F.dropout(weights, self.dropout, training=True) if self.dropout else weights


def _cast_logits(logits: AnyLogits, dtype: torch.dtype) -> AnyLogits:
    if isinstance(logits, HeadLogits):
        return HeadLogits(
            tuple((heads, logits_._replace(**_halves(logits_, dtype))) for heads, logits_ in logits.parts)
        )
    return logits._replace(**_halves(logits, dtype))


def _halves(logits: Logits, dtype: torch.dtype) -> dict:
    rows, columns = (None if x is None else x.to(dtype) for x in (logits.rows, logits.columns))
    return {"rows": rows, "columns": columns}


class Way(NamedTuple):
    """One way to compute a weighted sum.

    takes: whether it can do a case. attend: does it, or gives None where it finds that it should not.
    """

    name: str
    takes: Callable[[Case], bool]
    attend: Callable[[Case], Optional[Answer]]
