"""Different scorers in different heads: ``fixed_random:2|dot_product:1``."""

from typing import Any, List, Optional, Sequence, Tuple

from torch import Tensor

from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.base import AttentionConfig, Scorer
from fairseq_synth.modules.scorers.composite import CompositeScorer
from fairseq_synth.modules.scorers.logits import HeadLogits


class Heads(CompositeScorer):
    """The first heads belong to the first scorer, the next to the second, and so on.

    Queries and keys are projected only for the heads that need them, in the order of the heads.
    """

    def __init__(self, attention: AttentionConfig, scorers: Sequence[Scorer]):
        super().__init__(attention, scorers)
        if sum(self.counts) != attention.num_heads:
            raise ValueError(f"scorers of {self.counts} heads do not make {attention.num_heads}")

    @property
    def counts(self) -> List[int]:
        """How many heads each scorer has."""
        return [scorer.num_heads for scorer in self.scorers]  # type: ignore[misc]

    def key_heads(self) -> List[int]:
        heads, first = [], 0
        scorer: Any
        for scorer in self.scorers:
            heads += [first + head for head in scorer.key_heads()]
            first += scorer.num_heads
        return heads

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> HeadLogits:
        parts, first = [], 0
        scorer: Any
        for scorer in self.scorers:
            count = scorer.num_heads if scorer.needs_keys else 0
            own = _own_heads(q, first, count), _own_heads(k, first, count)
            parts.append((scorer.num_heads, scorer.logits(x, *own, positions)))
            first += count
        return HeadLogits(tuple(parts))


def _own_heads(x: Optional[Tensor], first: int, count: int) -> Optional[Tensor]:
    """B x h x T x D -> the heads from ``first`` on."""
    return x.narrow(1, first, count) if x is not None and count else None


def shared_out(names: Sequence[str], heads: int) -> Tuple[int, ...]:
    """Numbers of heads as even as can be, the first ones the larger."""
    each, more = divmod(heads, len(names))
    return tuple(each + (i < more) for i in range(len(names)))
