"""The list of ways to compute softmax(logits) @ values, and the only place that chooses one.

A new way is a file beside this one and a line in WAYS. Which one was taken is a debug line in the log of
``fairseq_synth.ways``; :func:`watch_ways` collects them.
"""

import contextlib
import logging
from typing import Iterator, List, Tuple

import torch

from fairseq_synth.modules.products import autocast, autocast_dtype
from fairseq_synth.modules.scorers.logits import HeadLogits
from fairseq_synth.modules.weighted_sum import blocks, shared, whole
from fairseq_synth.modules.weighted_sum.by_heads import attend_by_heads
from fairseq_synth.modules.weighted_sum.case import Answer, Case, Way

logger = logging.getLogger("fairseq_synth.ways")

# the first that takes a case does it; ``whole`` takes everything and is the reference of the others
WAYS: List[Way] = [shared.WAY, blocks.WAY, whole.WAY]


def weighted_sum(case: Case) -> Answer:
    """Outputs T x B x C and the weights (None unless wanted), in the first way that takes the case.

    Under autocast products are done in autocast's type, as PyTorch would, by whatever way takes that.
    """
    device = case.value.device
    if not autocast(device):
        return _choose(case)
    with torch.autocast(device.type, enabled=False):
        return _choose(case.cast(autocast_dtype(device)))


def _choose(case: Case) -> Answer:
    if isinstance(case.logits, HeadLogits):
        return attend_by_heads(case, _choose)
    for way in WAYS:
        answer = way.attend(case) if way.takes(case) else None
        if answer is not None:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("%s", way.name)
            return answer
    raise ValueError("no way takes this case: `whole` has been taken out of the list")


class _Collector(logging.Handler):
    def __init__(self, names: List[str]) -> None:
        super().__init__(logging.DEBUG)
        self.names = names

    def emit(self, record: logging.LogRecord) -> None:
        self.names.append(record.getMessage())


@contextlib.contextmanager
def watch_ways() -> Iterator[List[str]]:
    """Inside, the names of the ways taken, in the order in which they end."""
    names: List[str] = []
    before: Tuple[int, bool] = (logger.level, logger.propagate)
    handler = _Collector(names)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield names
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
