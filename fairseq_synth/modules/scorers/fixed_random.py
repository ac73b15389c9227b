"""``fixed_random``: the Fixed Random Synthesizer (Tay et al. 2021, section 3.1): B = R, never trained."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor

from fairseq_synth.modules.initial import fill
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, Scorer, register_scorer
from fairseq_synth.modules.scorers.logits import Logits
from fairseq_synth.modules.scorers.maps import MapOptions, map_rule


@dataclass
class FixedRandomOptions(MapOptions):
    map_seed: int = field(default=1, metadata={"help": "seed of the fixed_random maps"})


@register_scorer("fixed_random", FixedRandomOptions)
class FixedRandomScorer(Scorer):
    """A map as in ``random``, but a buffer: drawn once from a private generator, stored in the checkpoint.

    The draw does not touch torch's global generator, so the trained part of the model starts as it would without.
    """

    map: Tensor
    depends_on = "positions"

    def __init__(self, attention: AttentionConfig, options: FixedRandomOptions):
        super().__init__(attention, options)
        generator = torch.Generator().manual_seed(attention.seed(options.map_seed))
        fixed = torch.empty(attention.num_heads, options.max_length, options.max_length)
        fill(fixed, map_rule(str(options.init), *fixed.shape), generator)
        self.register_buffer("map", fixed)

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        return Logits(bias=positions.columns(positions.rows(self.map)))
