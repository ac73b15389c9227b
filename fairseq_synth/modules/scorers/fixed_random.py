"""``fixed_random``: the Fixed Random Synthesizer (Tay et al. 2021, section 3.1): B = R, never trained."""

from typing import Optional

import torch
from torch import Tensor

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, ScorerConfig, init_map, register_scorer


@register_scorer("fixed_random")
class FixedRandomScorer(Scorer):
    """A map as in ``random``, but a buffer: drawn once from a private generator, stored in the checkpoint.

    The draw does not touch torch's global generator, so the trained part of the model starts as it would without.
    """

    map: Tensor
    uses_tokens = False
    options = ("max_length", "init", "map_seed")

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.map_seed)
        fixed = torch.empty(config.num_heads, config.max_length, config.max_length)
        init_map(fixed, config.init, generator=generator)
        self.register_buffer("map", fixed)

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        return positions.columns(positions.rows(self.map))
