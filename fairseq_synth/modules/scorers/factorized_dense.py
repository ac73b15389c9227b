"""``factorized_dense``: the Factorized Dense Synthesizer (Tay et al. 2021, section 3.2)."""

from dataclasses import dataclass, field
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.initial import Rule
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, LengthOptions, Scorer, register_scorer
from fairseq_synth.modules.scorers.dense import affine, head_outputs, hidden_layer, output_rule, split_heads
from fairseq_synth.modules.scorers.logits import Logits


@dataclass
class FactorizedDenseOptions(LengthOptions):
    factors: Optional[str] = field(
        default=None,
        metadata={"help": "a,b with a*b = N for factorized_dense (default: the most even pair)"},
    )


def parse_factors(value: Optional[str]) -> Optional[Tuple[int, int]]:
    """'16,16' -> (16, 16). Raises UsageError for anything that is not two whole numbers."""
    if value is None:
        return None
    parts = [part.strip() for part in str(value).split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"--synthesizer-factors {value}: wants two whole numbers a,b, for example 16,16")
    return int(parts[0]), int(parts[1])


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


@register_scorer("factorized_dense", FactorizedDenseOptions)
class FactorizedDenseScorer(Scorer):
    """Each token makes two short vectors, A in R^a and B in R^b with a * b = N; the logits are their products.

    Column j is A[j // b] * B[j % b]: one factor interleaved, the other tiled. (Tiling both reaches only
    lcm(a, b) different columns.) Both share the first layer. Parameters: C^2 + C + (C + H)(a + b).
    """

    def __init__(self, attention: AttentionConfig, options: FactorizedDenseOptions):
        super().__init__(attention, options)
        self.factors = resolve_factors(options.max_length, parse_factors(options.factors))
        self.hidden = hidden_layer(attention)
        self.weight_a, self.weight_b = (head_outputs(attention, width) for width in self.factors)
        self.bias_a, self.bias_b = (nn.Parameter(torch.empty(attention.num_heads, 1, w)) for w in self.factors)

    def rule(self, name: str) -> Rule:
        return output_rule(getattr(self, name), name)

    @classmethod
    def check(cls, options: FactorizedDenseOptions) -> None:
        resolve_factors(options.max_length, parse_factors(options.factors))

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Logits:
        hidden = split_heads(torch.relu(self.hidden(x)), self.num_heads)
        a, b = self.factors
        # only the blocks of b columns that are needed
        low, high = (positions.first // b, -(-positions.end // b)) if positions.key_index is None else (0, a)
        left = affine(hidden, self.weight_a[..., low:high], self.bias_a[..., low:high])
        right = affine(hidden, self.weight_b, self.bias_b)
        return Logits(bias=positions.columns((left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2), low * b))
