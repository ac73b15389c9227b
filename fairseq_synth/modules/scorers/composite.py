"""What scorers made of other scorers have in common."""

from typing import Sequence

from torch import nn

from fairseq_synth.modules.scorers.base import DEPENDS_ON, AttentionConfig, NoOptions, Scorer


class CompositeScorer(Scorer):
    """Depends on what one of its scorers depends on, and ends where the shortest ends.

    Args:
        attention: what they score for together.
        scorers: the parts.
    """

    def __init__(self, attention: AttentionConfig, scorers: Sequence[Scorer]):
        super().__init__(attention, NoOptions())
        self.scorers = nn.ModuleList(scorers)
        lengths = [s.max_length for s in scorers if s.max_length is not None]
        self.max_length = min(lengths) if lengths else None
        self.depends_on = max((s.depends_on for s in scorers), key=DEPENDS_ON.index)
        self.needs_keys = any(s.needs_keys for s in scorers)
