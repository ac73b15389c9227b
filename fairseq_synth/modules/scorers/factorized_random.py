"""``factorized_random``: the Factorized Random Synthesizer (Tay et al. 2021, section 3.2): B = R1 R2^T."""

from typing import Optional

import torch
from torch import Tensor, nn

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, ScorerConfig, init_map, register_scorer


@register_scorer("factorized_random")
class FactorizedRandomScorer(Scorer):
    """R1, R2 in R^{N x rank}, per head and layer. Parameters: 2 * H * N * rank (the paper's rank is 8)."""

    uses_tokens = False
    options = ("max_length", "init", "rank")

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        shape = (config.num_heads, config.max_length, config.rank)
        self.left, self.right = nn.Parameter(Tensor(*shape)), nn.Parameter(Tensor(*shape))
        for factor in (self.left, self.right):
            # with `normal` a logit sums rank products of two factors: this makes its variance 1
            init_map(factor, config.init, variance=config.rank**-0.5)

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        left = positions.rows(self.left)
        if positions.key_index is None:
            right = self.right[:, positions.first : positions.end]
        else:
            right = self.right[:, positions.key_index].transpose(0, 1)
        return torch.matmul(left, right.transpose(-2, -1))
