"""Heads of different kinds: each kind in the way that suits it."""

from typing import Callable, List, Optional

import torch
from torch import Tensor

from fairseq_synth.modules.weighted_sum.case import Answer, Case, Persistent


def attend_by_heads(case: Case, choose: Callable[[Case], Answer]) -> Answer:
    """case.logits: HeadLogits. choose: answers a case of one kind."""
    answers = [choose(part) for part in split_case(case)]
    outputs = torch.cat([outputs for outputs, _ in answers], dim=-1)
    if not case.need_weights:
        return outputs, None
    weights = [w.expand(case.value.size(0), -1, -1, -1) for _, w in answers if w is not None]
    return outputs, torch.cat(weights, dim=1)


def split_case(case: Case) -> List[Case]:
    """A case for each kind of heads."""
    parts, first = [], 0
    for heads, logits in case.logits.parts:  # type: ignore[union-attr]
        here = slice(first, first + heads)
        parts.append(case._replace(logits=logits, value=case.value[:, here], memory=_of_heads(case.memory, here)))
        first += heads
    return parts


def _of_heads(memory: Optional[Persistent], heads: slice) -> Optional[Persistent]:
    if memory is None:
        return None
    logits: Tensor = memory.logits[:, heads]
    return Persistent(logits, memory.value[heads])
