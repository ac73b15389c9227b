"""Which way of computing an attention takes in which situation."""

from typing import Any, Dict, List

import torch

from fairseq_synth.checks.case import Case, padding_mask, states
from fairseq_synth.modules.weighted_sum.choose import watch_ways

# what is different from a batch of equal sentences in float32; decoding goes token by token
SITUATIONS = (
    "training",
    "evaluation",
    "pads on the right",
    "pads anywhere",
    "bfloat16",
    "float16",
    "autocast",
    "adaptive span",
    "persistent memory",
    "weights asked for",
    "decoding",
)
_OPTIONS: Dict[str, Dict[str, Any]] = {
    "adaptive span": {"encoder_adaptive_span": 6, "decoder_adaptive_span": 6},
    "persistent memory": {"persistent_memory": 3},
}
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def ways_taken(case: Case, situation: str) -> List[str]:
    """Names of ways, one for each kind of heads; empty where the situation does not exist."""
    if case.side == "cross" and situation in (*_OPTIONS, "pads anywhere"):
        return []
    case = case._replace(options=(*case.options, *_OPTIONS.get(situation, {}).items()))
    attention = case.attention(right_padded=situation != "pads anywhere").to(_TYPES.get(situation, torch.float32))
    attention.train(situation == "training")
    x = states(7, 3).to(_TYPES.get(situation, torch.float32))
    pads = padding_mask(left=situation == "pads anywhere") if situation.startswith("pads") else None
    steps = 1 if situation == "decoding" else x.size(0)
    state: Any = {} if situation == "decoding" else None
    with watch_ways() as taken, torch.autocast("cpu", torch.bfloat16, enabled=situation == "autocast"):
        attention(x[:steps], x, x, pads, state, need_weights=situation == "weights asked for")
    return taken
