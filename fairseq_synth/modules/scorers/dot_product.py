"""``dot_product``: scaled dot-product attention (Vaswani et al. 2017, eq. 1)."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Logits, Scorer, register_scorer


@register_scorer("dot_product")
class DotProductScorer(Scorer):
    """Q K^T / sqrt(D). No parameters here: the attention owns the query and key projections."""

    needs_keys = True

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        q, k = _given(q, k)
        return torch.matmul(q, k.transpose(-2, -1))

    def terms(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        return Logits(*_given(q, k))


def _given(q: Optional[Tensor], k: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    if q is None or k is None:
        raise ValueError("dot_product scores queries against keys, and was given none")
    return q, k
