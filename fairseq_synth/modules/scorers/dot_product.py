"""``dot_product``: scaled dot-product attention (Vaswani et al. 2017, eq. 1)."""

from typing import Optional

from torch import Tensor

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, register_scorer
from fairseq_synth.modules.scorers.logits import Logits


@register_scorer("dot_product")
class DotProductScorer(Scorer):
    """Q K^T / sqrt(D). No parameters here: the attention owns the query and key projections."""

    needs_keys = True

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        if q is None or k is None:
            raise ValueError("dot_product scores queries against keys, and was given none")
        return Logits(q, k)
