"""``factorized_dense``: the Factorized Dense Synthesizer (Tay et al. 2021, section 3.2)."""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import Scorer, ScorerConfig, register_scorer
from fairseq_synth.modules.scorers.dense import affine, head_outputs, hidden_layer, split_heads


def resolve_factors(max_length: int, factors: Optional[Tuple[int, int]]) -> Tuple[int, int]:
    """(a, b) with a * b = N: as asked, or the most even pair with a <= b.

    Raises UsageError where the product is not N, or where N is a prime that only 1 * N would make.
    """
    if factors is not None:
        a, b = factors
        if a < 1 or b < 1 or a * b != max_length:
            raise UsageError(
                f"--synthesizer-factors {a},{b}: the product is {a * b}, but it must be --synthesizer-max-length "
                f"{max_length}; change one of the two"
            )
        return a, b
    a = next(d for d in range(int(max_length**0.5), 0, -1) if max_length % d == 0)
    if a == 1 and max_length > 3:
        raise UsageError(
            f"--synthesizer-max-length {max_length}: factorized_dense needs a number with two factors, and this is "
            f"a prime; use {max_length + 1}, or give --synthesizer-factors 1,{max_length}"
        )
    return a, max_length // a


@register_scorer("factorized_dense")
class FactorizedDenseScorer(Scorer):
    """Each token makes two short vectors, A in R^a and B in R^b with a * b = N; the logits are their products.

    Column j is A[j // b] * B[j % b]: one factor interleaved, the other tiled. (Tiling both reaches only
    lcm(a, b) different columns.) Both share the first layer. Parameters: C^2 + C + (C + H)(a + b).
    """

    options = ("max_length", "factors")

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        self.num_heads = config.num_heads
        self.factors = resolve_factors(config.max_length, config.factors)
        self.hidden = hidden_layer(config)
        self.weight_a, self.weight_b = (head_outputs(config, width) for width in self.factors)
        self.bias_a, self.bias_b = (nn.Parameter(torch.zeros(config.num_heads, 1, w)) for w in self.factors)

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        hidden = split_heads(torch.relu(self.hidden(x)), self.num_heads)
        a, b = self.factors
        # only the blocks of b columns that are needed
        low, high = (positions.first // b, -(-positions.end // b)) if positions.key_index is None else (0, a)
        left = affine(hidden, self.weight_a[..., low:high], self.bias_a[..., low:high])
        right = affine(hidden, self.weight_b, self.bias_b)
        return positions.columns((left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2), low * b)
