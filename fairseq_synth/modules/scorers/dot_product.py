"""``dot_product``: scaled dot-product attention (Vaswani et al. 2017, eq. 1)."""

from typing import Optional

import torch
from torch import Tensor

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, register_scorer


@register_scorer("dot_product")
class DotProductScorer(Scorer):
    """Q K^T / sqrt(D). No parameters here: the attention owns the query and key projections."""

    needs_keys = True

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        if q is None or k is None:
            raise ValueError("dot_product scores queries against keys, and was given none")
        return torch.matmul(q, k.transpose(-2, -1))
