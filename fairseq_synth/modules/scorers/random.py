"""``random``: the Random Synthesizer (Tay et al. 2021, section 3.1): B = R, trained."""

from typing import Optional

from torch import Tensor, nn

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, ScorerConfig, init_map, register_scorer


@register_scorer("random")
class RandomScorer(Scorer):
    """One N x N map per head and layer, the same for every sentence. Parameters: H * N^2."""

    uses_tokens = False
    options = ("max_length", "init")

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        self.map = nn.Parameter(Tensor(config.num_heads, config.max_length, config.max_length))
        init_map(self.map, config.init)

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        return positions.columns(positions.rows(self.map))
