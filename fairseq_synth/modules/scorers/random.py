"""``random``: the Random Synthesizer (Tay et al. 2021, section 3.1): B = R, trained."""

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_synth.modules.initial import Rule
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, Scorer, register_scorer
from fairseq_synth.modules.scorers.logits import Logits
from fairseq_synth.modules.scorers.maps import MapOptions, map_rule


@register_scorer("random", MapOptions)
class RandomScorer(Scorer):
    """One N x N map per head and layer, the same for every sentence. Parameters: H * N^2."""

    depends_on = "positions"

    def __init__(self, attention: AttentionConfig, options: MapOptions):
        super().__init__(attention, options)
        self.init = str(options.init)
        self.map = nn.Parameter(torch.empty(attention.num_heads, options.max_length, options.max_length))

    def rule(self, name: str) -> Rule:
        return map_rule(self.init, *self.map.shape)

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        if not positions.shared:
            return Logits(bias=positions.columns(positions.rows(self.map)))
        rows = slice(positions.start, positions.start + positions.queries)
        return Logits(bias=_Part.apply(self.map, rows, slice(positions.first, positions.end)))


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
