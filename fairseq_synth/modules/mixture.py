"""Mixtures of scorers (Tay et al. 2021, section 3.3): a learned convex combination, before the softmax."""

from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer


class Mixture(Scorer):
    """sum_i alpha_i S_i(X) with sum_i alpha_i = 1, one alpha per scorer and head; they start equal.

    ``mixture_logits``: K x H for K scorers, alpha = softmax over K.
    """

    def __init__(self, scorers: Sequence[Scorer], num_heads: int):
        nn.Module.__init__(self)
        self.scorers = nn.ModuleList(scorers)
        self.mixture_logits = nn.Parameter(torch.zeros(len(scorers), num_heads))
        lengths = [s.max_length for s in scorers if s.max_length is not None]
        self.max_length: Optional[int] = min(lengths) if lengths else None
        self.uses_tokens = any(s.uses_tokens for s in scorers)
        self.needs_keys = any(s.needs_keys for s in scorers)

    def weights(self) -> Tensor:
        """alpha: K x H, non-negative, each column sums to 1."""
        return torch.softmax(self.mixture_logits.float(), dim=0)

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        alpha = self.weights().to(x.dtype)[..., None, None]
        logits = [a * scorer(x, q, k, positions) for a, scorer in zip(alpha, self.scorers)]
        total = logits[0]
        for other in logits[1:]:
            total = total + other
        return total
