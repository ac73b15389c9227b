"""Mixtures of scorers (Tay et al. 2021, section 3.3): a learned convex combination, before the softmax."""

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor, nn

from fairseq_synth.modules.initial import ZEROS, Rule
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, Scorer
from fairseq_synth.modules.scorers.composite import CompositeScorer
from fairseq_synth.modules.scorers.logits import Logits


class Mixture(CompositeScorer):
    """sum_i alpha_i S_i(X) with sum_i alpha_i = 1, one alpha per scorer and head; they start equal.

    ``mixture_logits``: K x H for K scorers, alpha = softmax over K.
    """

    def __init__(self, attention: AttentionConfig, scorers: Sequence[Scorer]):
        super().__init__(attention, scorers)
        self.mixture_logits = nn.Parameter(torch.zeros(len(scorers), attention.num_heads))

    def rule(self, name: str) -> Rule:
        return ZEROS

    def weights(self) -> Tensor:
        """alpha: K x H, non-negative, each column sums to 1."""
        return torch.softmax(self.mixture_logits.float(), dim=0)

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        """One product for the scorers that have one: their rows and columns side by side."""
        rows: List[Tensor] = []
        columns: List[Tensor] = []
        biases: List[Tensor] = []
        scorer: Any
        for alpha, scorer in zip(self.weights().to(x.dtype)[..., None, None], self.scorers):
            one = scorer.logits(x, q, k, positions)
            if one.rows is not None:
                rows.append(alpha * one.rows)
                columns.append(one.columns)
            if one.bias is not None:
                biases.append(alpha * one.bias)
        return Logits(_side_by_side(rows), _side_by_side(columns), _sum(biases) if biases else None)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for other in terms[1:]:
        total = total + other
    return total


def _side_by_side(factors: Sequence[Tensor]) -> Optional[Tensor]:
    return torch.cat(list(factors), dim=-1) if len(factors) > 1 else factors[0] if factors else None
