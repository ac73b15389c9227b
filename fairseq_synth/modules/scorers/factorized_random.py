"""``factorized_random``: the Factorized Random Synthesizer (Tay et al. 2021, section 3.2): B = R1 R2^T."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn

from fairseq_synth.modules.initial import Rule
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, Scorer, register_scorer
from fairseq_synth.modules.scorers.logits import Logits
from fairseq_synth.modules.scorers.maps import MapOptions, map_rule


@dataclass
class FactorizedRandomOptions(MapOptions):
    rank: int = field(default=8, metadata={"help": "rank of factorized_random", "least": 1})


@register_scorer("factorized_random", FactorizedRandomOptions)
class FactorizedRandomScorer(Scorer):
    """R1, R2 in R^{N x rank}, per head and layer. Parameters: 2 * H * N * rank (the paper's rank is 8)."""

    depends_on = "positions"

    def __init__(self, attention: AttentionConfig, options: FactorizedRandomOptions):
        super().__init__(attention, options)
        self.init, shape = str(options.init), (attention.num_heads, options.max_length, options.rank)
        self.left, self.right = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def rule(self, name: str) -> Rule:
        # with `normal` a logit sums rank products of two factors: this makes its variance 1
        heads, rows, rank = self.left.shape
        return map_rule(self.init, heads, rows, rank, variance=rank**-0.5)

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        left = positions.rows(self.left)
        if positions.key_index is None:
            right = self.right[:, positions.first : positions.end]
        else:
            right = self.right[:, positions.key_index].transpose(0, 1)
        return Logits(bias=torch.matmul(left, right.transpose(-2, -1)))
