"""``random``: the Random Synthesizer (Tay et al. 2021, section 3.1): B = R, trained."""

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Logits, Scorer, ScorerConfig, init_map, register_scorer


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

    def terms(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        end = positions.start + positions.queries
        return Logits(bias=_Part.apply(self.map, slice(positions.start, end), slice(positions.first, positions.end)))


class _Part(torch.autograd.Function):
    """map[:, rows, columns]; one gradient of the map's size and one copy, where autograd makes two of each."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: slice, columns: slice) -> Tensor:
        ctx.shape, ctx.place = table.shape, (slice(None), rows, columns)
        return table[ctx.place]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if gradient.shape == ctx.shape:
            return gradient, None, None
        whole = gradient.new_zeros(ctx.shape)
        whole[ctx.place] = gradient
        return whole, None, None
